/* One input of a fuzzer for the text functions: the first byte says what the rest is. Built after text_library.c; TABLES
 * is the path of text tables. */
#include <stdio.h>
#include <stdlib.h>

enum { MOST_TOKENS = 4096 };

static void check(int holds) {
  if (!holds) abort();
}

static void *aligned_copy(const void *from, size_t size) {
  void *copy = NULL;
  check(posix_memalign(&copy, MODEL_ALIGNMENT, size ? size : 1) == 0);
  if (size) memcpy(copy, from, size);
  return copy;
}

static void tokenize(const struct model_model *model, const char *text, size_t size, int32_t flags) {
  const size_t bytes = model_tokenize_workspace_bytes(model, size);
  void *workspace = NULL;
  size_t count = 0, again = 0;
  check(posix_memalign(&workspace, MODEL_ALIGNMENT, bytes) == 0);
  memset(workspace, 0xAA, bytes);
  const model_status status = model_tokenize(model, text, size, flags, workspace, bytes, NULL, 0, &count);
  if (status == MODEL_SIZE) {
    int32_t *ids = malloc(count * sizeof *ids);
    check(model_tokenize(model, text, size, flags, workspace, bytes, ids, count, &again) == MODEL_OK && again == count);
    for (size_t i = 0; i < count; i++) check(ids[i] >= 0 && ids[i] < text_vocabulary(&model->text));
    free(ids);
  }
  free(workspace);
}

/* What comes out must be valid UTF-8, whatever the ids and however they are cut. */
static void detokenize(const struct model_model *model, const int32_t *ids, size_t count, size_t step) {
  model_decoder decoder = {.keep_special = step % 2 == 0, .from_start = step % 3 == 0};
  for (size_t i = 0; i <= count; i += step) {
    const size_t size = i + step < count ? step : count - i;
    const int32_t *piece = i < count ? ids + i : NULL;
    size_t bytes = 0;
    const model_status status = model_detokenize(model, &decoder, piece, piece ? size : 0, NULL, 0, &bytes);
    if (status != MODEL_SIZE) continue;
    char *text = malloc(bytes);
    check(model_detokenize(model, &decoder, piece, piece ? size : 0, text, bytes, &bytes) == MODEL_OK);
    check(utf8_valid((const uint8_t *)text, bytes));
    free(text);
  }
}

static void chat(const struct model_model *model, const char *data, size_t size) {
  static const char *const roles[] = {"user", "assistant", "system", "tool"};
  model_turn turns[8];
  size_t count = 0, at = 0, bytes = 0;
  while (at < size && count < 8) { /* a byte for the role and the answer, a byte for the content's size, the content */
    const uint8_t role = (uint8_t)data[at++], wanted = at < size ? (uint8_t)data[at++] : 0;
    const size_t left = size - at;
    turns[count++] = (model_turn){roles[role % 4], data + at, wanted < left ? wanted : left};
    at += turns[count - 1].content_bytes;
  }
  if (model_chat(model, turns, count, size % 2, NULL, 0, &bytes) != MODEL_SIZE) return;
  char *text = malloc(bytes);
  check(model_chat(model, turns, count, size % 2, text, bytes, &bytes) == MODEL_OK);
  check(utf8_valid((const uint8_t *)text, bytes));
  free(text);
}

/* Tables as someone might make them who knows the format: the sum is set right. */
static void tables(const uint8_t *data, size_t size) {
  static const char text[] = " Hello,\n\nwörld <|im_start|>x  1234 漢字 e\xCC\x81\xCC\xA3 \xEA\xB0\x80'll \t ";
  uint8_t *copy = aligned_copy(data, size);
  struct model_model model;
  if (size >= TEXT_HEADER) {
    const uint64_t sum = sum_of(copy + TEXT_HEADER, size - TEXT_HEADER, 0);
    memcpy(copy + 24, &sum, sizeof sum);
  }
  if (model_text_open(copy, size, &model) == MODEL_OK) {
    int32_t ids[64];
    for (int32_t i = 0; i < 64; i++) ids[i] = i * (text_vocabulary(&model.text) / 64 + 1);
    tokenize(&model, text, sizeof text - 1, MODEL_PARSE_SPECIAL);
    tokenize(&model, text, 9, 0);
    size_t bytes;
    model_decoder decoder = {0};
    model_detokenize(&model, &decoder, ids, 64, NULL, 0, &bytes);
    const model_turn turns[] = {{"user", text, sizeof text - 1}, {"assistant", "x", 1}};
    model_chat(&model, turns, 2, 1, NULL, 0, &bytes);
  }
  free(copy);
}

static const struct model_model *fixed_model(void) {
  static struct model_model model;
  static uint8_t *data;
  if (data) return &model;
  FILE *file = fopen(TABLES, "rb");
  check(file != NULL && fseek(file, 0, SEEK_END) == 0);
  const size_t size = (size_t)ftell(file);
  rewind(file);
  data = aligned_copy("", 0);
  free(data);
  check(posix_memalign((void **)&data, MODEL_ALIGNMENT, size) == 0 && fread(data, 1, size, file) == size);
  fclose(file);
  check(model_text_open(data, size, &model) == MODEL_OK);
  return &model;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const struct model_model *model = fixed_model();
  if (size < 2) return 0;
  const char *rest = (const char *)data + 2;
  const size_t left = size - 2;
  static int32_t ids[MOST_TOKENS];
  const size_t count = left / 4 < MOST_TOKENS ? left / 4 : MOST_TOKENS;
  switch (data[0] % 4) {
    case 0: tables(data + 2, left); break;
    case 1: tokenize(model, rest, left, data[1] % 16); break;
    case 2:
      memcpy(ids, rest, count * 4);
      for (size_t i = 0; i < count; i++) ids[i] = ids[i] % (text_vocabulary(&model->text) + 2);
      detokenize(model, ids, count, data[1] % 7 + 1u);
      break;
    default: chat(model, rest, left);
  }
  return 0;
}

#ifdef REPLAY /* without libFuzzer: the inputs of a file, each after its size in 4 bytes */
int main(int count, char **words) {
  FILE *file = fopen(words[count - 1], "rb");
  uint32_t size;
  long runs = 0;
  check(file != NULL);
  while (fread(&size, sizeof size, 1, file) == 1) {
    uint8_t *input = malloc(size ? size : 1);
    check(fread(input, 1, size, file) == size);
    LLVMFuzzerTestOneInput(input, size);
    free(input);
    runs++;
  }
  fclose(file);
  printf("%ld inputs\n", runs);
  return 0;
}
#endif
