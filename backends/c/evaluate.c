/* Evaluates token ids and writes every logit: evaluate WEIGHTS THREADS IDS LOGITS STEP [VALUES].
 *
 * IDS is a file of int32; they are evaluated STEP at a time, from an empty session. LOGITS is written as float32, one
 * row for each id. VALUES gets what an observed program tells. */
#include "evaluate.h"

int main(int count, char **arguments) {
  EXPECT(count >= 6, "give WEIGHTS THREADS IDS LOGITS STEP [VALUES]");
  size_t id_bytes;
  const int32_t *ids = contents(arguments[3], &id_bytes);
  FILE *logits_file = opened(arguments[4], "wb");
  const int32_t total = (int32_t)(id_bytes / sizeof *ids), step = atoi(arguments[5]);
  values = count > 6 ? opened(arguments[6], "wb") : NULL;
  model_model *model = opened_model(arguments[1], arguments[2]);
  model_session *session;
  const size_t session_bytes = model_session_bytes(total);
  check(model_session_init(model, taken(session_bytes), session_bytes, &session));
  const size_t workspace_bytes = model_workspace_bytes(model, step, step), row = MODEL_OUTPUT_WIDTH * sizeof(float);
  void *workspace = taken(workspace_bytes);
  float *logits = taken((size_t)step * row);
  for (int32_t at = 0; at < total; at += step) {
    const int32_t n = total - at < step ? total - at : step;
    const model_item item = {.session = session, .ids = ids + at, .id_count = n, .rows_wanted = n, .logits = logits};
    check(model_eval(model, workspace, workspace_bytes, &item, 1));
    EXPECT(fwrite(logits, row, (size_t)n, logits_file) == (size_t)n, arguments[4]);
  }
  EXPECT(fclose(logits_file) == 0 && (!values || fclose(values) == 0), "cannot write the results");
  model_close(model);
  return 0;
}
