
/* ---- Text: tokenizer and chat format. docs/text.md of inferc says what each gives exactly ----
 *
 * Texts are UTF-8 with a size in bytes, without a null at their end. Calls that write to `capacity` items tell in
 * *out_count or *out_bytes how many there are; where they do not fit, the status is SIZE, that number is set all the
 * same, and nothing else is changed. A null destination with capacity 0 just counts. */

enum {
  MODEL_PARSE_SPECIAL = 1, /* texts of special tokens, such as <|im_start|>, are those tokens: not for untrusted text */
  MODEL_NO_BEGIN = 2,      /* without the token that the model was trained to begin texts with */
  MODEL_NO_END = 4,        /* without the token that the model was trained to end texts with */
  MODEL_CHAT_FORMAT = 8    /* what model_chat wrote: PARSE_SPECIAL and NO_END, and no second token of beginning */
};

/* Bytes of workspace to tokenize a text of `text_bytes`; 0 without text tables or for more than 2^28. */
MODEL_API size_t model_tokenize_workspace_bytes(const model_model *model, size_t text_bytes);

/* The ids of a text, with the tokens of beginning and end that the model was trained with, unless `flags` leave them
 * out. INVALID, SIZE, NO_TEXT, ENCODING. */
MODEL_API model_status model_tokenize(const model_model *model, const char *text, size_t text_bytes, int32_t flags,
                                      void *workspace, size_t bytes, int32_t *out_ids, size_t capacity, size_t *out_count);

/* Turns ids into text as they come; made by filling in the first two, the rest zero. May be copied. */
typedef struct model_decoder {
  int32_t keep_special; /* not 0: special tokens are written too */
  int32_t from_start;   /* not 0: the ids begin a text, so that the space which some models put before it is left out */
  uint8_t pending[4];   /* bytes of a character that is not complete yet */
  int32_t pending_bytes;
} model_decoder;

/* The text that `ids` complete: it never splits a character. Bytes that are no UTF-8 become U+FFFD; ids outside the
 * vocabulary have no text. Null ids, and count 0, end the text: an incomplete character becomes U+FFFD.
 * INVALID, SIZE, NO_TEXT. */
MODEL_API model_status model_detokenize(const model_model *model, model_decoder *decoder, const int32_t *ids, size_t count,
                                        char *out_text, size_t capacity, size_t *out_bytes);

/* 1 where generation ends with this token, else 0. */
MODEL_API int32_t model_is_end(const model_model *model, int32_t id);

typedef struct model_turn {
  const char *role; /* ends with a null: "system", "user", "assistant" */
  const char *content;
  size_t content_bytes;
} model_turn;

/* A conversation in the model's chat format, up to where the assistant is to answer, or if `answer` is 0 to the end of
 * the last message. To be tokenized with MODEL_CHAT_FORMAT. TEMPLATE where the model's template refuses the messages,
 * or treats them in ways that the library does not know. INVALID, SIZE, NO_TEXT, ENCODING, TEMPLATE. */
MODEL_API model_status model_chat(const model_model *model, const model_turn *messages, size_t count, int32_t answer,
                                  char *out_text, size_t capacity, size_t *out_bytes);
