
/* ---- The described function: shapes are checked, then the typed function is called. */

@TABLES@

static const model_signature signature = {@INPUTS@, @OUTPUTS@, inputs_described, outputs_described};

const model_signature *model_describe_run(void) { return &signature; }

/* Sets the sizes that have names; false for shapes that the function does not take. */
static bool measure(const model_array *in, int32_t *dim) {
  if (!in) return false;
  for (int32_t i = 0; i < signature.inputs; i++) {
    if (in[i].rank != signature.input[i].rank) return false;
    for (int32_t d = 0; d < in[i].rank; d++) {
      const model_axis *axis = &signature.input[i].axes[d];
      if (in[i].dims[d] < axis->least || in[i].dims[d] > axis->most) return false;
    }
  }
@MEASURE@
  return true;
}

/* What the shapes of the outputs are, given the sizes. */
static void shape_outputs(const int32_t *dim, model_array *out) {
  (void)dim;
  for (int32_t i = 0; i < signature.outputs; i++) out[i].rank = signature.output[i].rank;
@SHAPES@
}

model_status model_run_shapes(const model_array *inputs, model_array *outputs) {
  int32_t dim[@DIMS@];
  if (!outputs || !measure(inputs, dim)) return MODEL_INVALID;
  shape_outputs(dim, outputs);
  return MODEL_OK;
}

size_t model_run_bytes(const model_model *model, const model_array *inputs) {
  int32_t dim[@DIMS@];
  if (!model || !measure(inputs, dim)) return 0;
  return model_call_workspace_bytes(@SIZED@);
}

model_status model_run(model_model *model, void *workspace, size_t bytes, const model_array *inputs,
                       const model_array *outputs) {
  int32_t dim[@DIMS@];
  model_array shaped[@OUTPUTS_HELD@];
  if (!outputs || !measure(inputs, dim)) return MODEL_INVALID;
  shape_outputs(dim, shaped);
  for (int32_t i = 0; i < signature.outputs; i++) {
    if (outputs[i].rank != shaped[i].rank) return MODEL_INVALID;
    for (int32_t d = 0; d < shaped[i].rank; d++) {
      if (outputs[i].dims[d] != shaped[i].dims[d]) return MODEL_INVALID;
    }
  }
  return model_call(@CALL@);
}
