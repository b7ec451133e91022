// Continues a text: c++ -std=c++17 main.cpp -I. libmodel.a -lm -pthread -o main && ./main "Once upon a time"
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "model.h"
constexpr int32_t most = 32;  // tokens to make

static void check(model_status status) {
  if (status != MODEL_OK) throw std::runtime_error(model_message(status));
}

struct alignas(MODEL_ALIGNMENT) Line { char bytes[MODEL_ALIGNMENT]; };  // memory as the model asks for it
static std::vector<Line> take(size_t bytes) { return std::vector<Line>(bytes / sizeof(Line) + 1); }

int main(int argc, char **argv) try {
  const std::string prompt = argc > 1 ? argv[1] : "The capital of France is";
  model_open_options options{};
  options.size = sizeof options;
  model_model *model;
  check(model_open(&options, &model));

  std::vector<int32_t> ids(MODEL_MAX_TOKENS);
  const size_t scratch_bytes = model_tokenize_workspace_bytes(model, prompt.size());
  auto scratch = take(scratch_bytes);
  size_t count;
  check(model_tokenize(model, prompt.data(), prompt.size(), 0, scratch.data(), scratch_bytes, ids.data(), ids.size(), &count));
  ids.resize(count);

  const size_t session_bytes = model_session_bytes(int32_t(count) + most);
  const size_t workspace_bytes = model_workspace_bytes(model, int32_t(count), 1);
  auto memory = take(session_bytes), workspace = take(workspace_bytes), choosing = take(MODEL_SAMPLE_BYTES);
  std::vector<float> logits(MODEL_VOCAB_SIZE);
  model_session *session;
  check(model_session_init(model, memory.data(), session_bytes, &session));

  model_sampling how{};  // the likeliest token each time
  how.size = sizeof how;
  model_decoder decoder{};
  for (size_t fed = 0; ids.size() < count + most;) {
    const model_item item{session, ids.data() + fed, int32_t(ids.size() - fed), 1, logits.data()};
    check(model_eval(model, workspace.data(), workspace_bytes, &item, 1));
    fed = ids.size();
    int32_t id;
    check(model_sample(logits.data(), &how, ids.data(), ids.size(), choosing.data(), MODEL_SAMPLE_BYTES, &id));
    if (model_is_end(model, id)) break;
    ids.push_back(id);
    char piece[256];
    size_t bytes;
    check(model_detokenize(model, &decoder, &id, 1, piece, sizeof piece, &bytes));
    std::cout.write(piece, std::streamsize(bytes)).flush();
  }
  std::cout << '\n';
  model_close(model);
} catch (const std::exception &error) {
  std::cerr << error.what() << '\n';
  return 1;
}
