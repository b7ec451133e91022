/* Calls a function once: evaluate WEIGHTS THREADS INPUTS OUTPUTS [VALUES].
 *
 * INPUTS has each array as int32 rank, that many int32 sizes, and the elements; OUTPUTS is written so. VALUES gets what
 * an observed program tells. */
#include "evaluate.h"

/* Bytes of an element, by its model_dtype. */
static const size_t ELEMENT[] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8};

static size_t bytes_of(const model_parameter *parameter, const model_array *array) {
  size_t bytes = ELEMENT[parameter->dtype];
  for (int32_t d = 0; d < array->rank; d++) bytes *= (size_t)array->dims[d];
  return bytes;
}

int main(int count, char **arguments) {
  EXPECT(count >= 5, "give WEIGHTS THREADS INPUTS OUTPUTS [VALUES]");
  FILE *given = opened(arguments[3], "rb"), *made = opened(arguments[4], "wb");
  values = count > 5 ? opened(arguments[5], "wb") : NULL;
  model_model *model = opened_model(arguments[1], arguments[2]);
  const model_signature *signature = model_describe_run();
  model_array *inputs = taken((size_t)signature->inputs * sizeof *inputs);
  model_array *outputs = taken((size_t)signature->outputs * sizeof *outputs);
  for (int32_t i = 0; i < signature->inputs; i++) {
    model_array *array = &inputs[i];
    EXPECT(fread(&array->rank, sizeof array->rank, 1, given) == 1, arguments[3]);
    EXPECT(array->rank == signature->input[i].rank, "an input has another rank");
    EXPECT(fread(array->dims, sizeof *array->dims, (size_t)array->rank, given) == (size_t)array->rank, arguments[3]);
    const size_t bytes = bytes_of(&signature->input[i], array);
    array->data = taken(bytes);
    EXPECT(fread(array->data, 1, bytes, given) == bytes, arguments[3]);
  }
  check(model_run_shapes(inputs, outputs));
  for (int32_t i = 0; i < signature->outputs; i++) outputs[i].data = taken(bytes_of(&signature->output[i], &outputs[i]));
  const size_t workspace_bytes = model_run_bytes(model, inputs);
  check(model_run(model, taken(workspace_bytes), workspace_bytes, inputs, outputs));
  for (int32_t i = 0; i < signature->outputs; i++) {
    const model_array *array = &outputs[i];
    const size_t bytes = bytes_of(&signature->output[i], array);
    EXPECT(fwrite(&array->rank, sizeof array->rank, 1, made) == 1, arguments[4]);
    EXPECT(fwrite(array->dims, sizeof *array->dims, (size_t)array->rank, made) == (size_t)array->rank, arguments[4]);
    EXPECT(fwrite(array->data, 1, bytes, made) == bytes, arguments[4]);
  }
  fclose(given);
  EXPECT(fclose(made) == 0 && (!values || fclose(values) == 0), "cannot write the results");
  model_close(model);
  return 0;
}
