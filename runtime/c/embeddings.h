
/* ---- Embeddings: this model was compiled to give them in place of logits ----
 *
 * The embedding of a token is the model's hidden state after its last norm, MODEL_OUTPUT_WIDTH floats as the model
 * computes them: not scaled to length 1. It depends on the session's tokens up to that one, so the last tells most of a
 * text; models differ in whether theirs is the mean of all tokens' or the last. The mean for a text of at most
 * MODEL_MAX_TOKENS tokens, `session` being empty and `workspace` of model_workspace_bytes(model, count, count):
 *
 *   float rows[MODEL_MAX_TOKENS][MODEL_OUTPUT_WIDTH], mean[MODEL_OUTPUT_WIDTH] = {0};
 *   model_item item = {session, ids, count, count, rows[0]};
 *   model_status status = model_eval(model, workspace, bytes, &item, 1);
 *   for (int32_t t = 0; t < count; t++)
 *     for (int32_t i = 0; i < MODEL_OUTPUT_WIDTH; i++) mean[i] += rows[t][i] / (float)count;
 *
 * The last alone needs one wanted row: {session, ids, count, 1, mean}. Nothing samples: there are no logits. */
