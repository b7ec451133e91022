
/* ---- An encoder: the ids of one text in, its embedding out ----
 *
 * model_tokenize gives the ids, with those of beginning and end that the model was trained with; model_call, below, the
 * embedding: not scaled to length 1, and the same whatever the number of threads. Ids outside the vocabulary are taken
 * as its nearest. `ids` has room for as many as model_describe_run tells of the axis; a longer text is to be cut, its
 * last id kept. Texts at once are calls at once, each with a workspace of its own.
 *
 *   model_tokenize(model, text, text_bytes, 0, scratch, scratch_bytes, ids, room, &count);
 *   size_t bytes = model_call_workspace_bytes(model, (int32_t)count);
 *   model_call(model, workspace, bytes, (int32_t)count, ids, embedding); */
