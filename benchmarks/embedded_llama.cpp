// What examples/c/main.c does, with llama.cpp: embedded_llama MODEL.gguf PROMPT TOKENS. benchmarks/embedded.py times it.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "llama.h"

static void check(bool well, const char *what) {
  if (well) return;
  std::fprintf(stderr, "cannot %s\n", what);
  std::exit(1);
}

int main(int argc, char **argv) {
  check(argc == 4, "run: give MODEL.gguf PROMPT TOKENS");
  llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
  llama_backend_init();
  llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
  check(model, "load the model");
  const llama_vocab *vocab = llama_model_get_vocab(model);
  const int most = std::atoi(argv[3]), length = int(std::strlen(argv[2]));

  std::vector<llama_token> ids(length + 8);
  const int count = llama_tokenize(vocab, argv[2], length, ids.data(), int(ids.size()), true, false);
  check(count > 0, "tokenize the prompt");

  llama_context_params params = llama_context_default_params();
  params.n_ctx = count + most;
  params.n_threads = params.n_threads_batch = 2;
  llama_context *context = llama_init_from_model(model, params);
  check(context, "make a context");
  llama_sampler *greedy = llama_sampler_init_greedy();

  llama_batch batch = llama_batch_get_one(ids.data(), count);
  for (llama_token id, made = 0; made < most; made++, batch = llama_batch_get_one(&id, 1)) {
    check(llama_decode(context, batch) == 0, "evaluate");
    id = llama_sampler_sample(greedy, context, -1);
    if (llama_vocab_is_eog(vocab, id)) break;
    char piece[256];
    std::fwrite(piece, 1, size_t(llama_token_to_piece(vocab, id, piece, sizeof piece, 0, false)), stdout);
    std::fflush(stdout);
  }
  std::puts("");
  llama_sampler_free(greedy), llama_free(context), llama_model_free(model), llama_backend_free();
}
