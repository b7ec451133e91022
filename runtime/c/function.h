
/* ---- The function: arrays in, arrays out ------------------------------------------------------------------------- */

typedef enum model_dtype {
  MODEL_BOOL, /* a byte, 0 or 1 */
  MODEL_I8,
  MODEL_I16,
  MODEL_I32,
  MODEL_I64,
  MODEL_U8,
  MODEL_U16,
  MODEL_U32,
  MODEL_U64,
  MODEL_F16,  /* IEEE 754's, as its bits */
  MODEL_BF16, /* the upper half of an F32, as its bits */
  MODEL_F32,
  MODEL_F64
} model_dtype;

enum { MODEL_MAX_RANK = @MAX_RANK@ };

/* An axis of an array. Sizes with a name are known at each call: one name has one size in it. */
typedef struct model_axis {
  const char *size; /* a number, a name, or what it is computed by from names: "8", "batch", "2*batch + 1" */
  int32_t least, most;
} model_axis;

typedef struct model_parameter {
  const char *name;
  model_dtype dtype;
  int32_t rank;
  const model_axis *axes; /* as many as the rank, the slowest first */
} model_parameter;

typedef struct model_signature {
  int32_t inputs, outputs;
  const model_parameter *input, *output;
} model_signature;

/* What model_run takes and gives, for as long as the library is loaded.
 *
@SIGNATURE@ */
MODEL_API const model_signature *model_describe_run(void);

typedef struct model_array {
  void *data; /* elements, row-major, the last axis fastest; those of an input are only read */
  int32_t rank;
  int32_t dims[MODEL_MAX_RANK];
} model_array;

/* Sets rank and dims of every output to those that inputs of these shapes lead to; no data is read. INVALID. */
MODEL_API model_status model_run_shapes(const model_array *inputs, model_array *outputs);

/* The workspace of model_run for inputs of these shapes; 0 for shapes that it does not take. */
MODEL_API size_t model_run_bytes(const model_model *model, const model_array *inputs);

/* Computes the outputs, whose rank and dims are those of model_run_shapes. The workspace is aligned to
 * MODEL_ALIGNMENT, and not null where it needs no bytes either. INVALID, SIZE. */
MODEL_API model_status model_run(model_model *model, void *workspace, size_t bytes, const model_array *inputs,
                                 const model_array *outputs);
