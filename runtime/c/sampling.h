
/* ---- Sampling. docs/text.md of inferc says what it gives exactly ---- */

/* How the next token is chosen, in this order. Zero everywhere, but for size, takes the likeliest. */
typedef struct model_sampling {
  size_t size;               /* sizeof(model_sampling) */
  double repetition_penalty; /* logits of recent ids are divided by it where positive, else multiplied; 0 or 1: off */
  int32_t repetition_window; /* how many of the last ids are recent */
  int32_t top_k;             /* only that many of the likeliest tokens; 0: all */
  double top_p;              /* only the likeliest whose probabilities first reach this sum; 0 or 1: all */
  double min_p;              /* only those at least so many times as likely as the likeliest */
  double temperature;        /* the logits are divided by it; 0: the likeliest token, whatever else is set */
  uint64_t seed;             /* the same seed gives the same draws */
  uint64_t draws;            /* counted up by each draw: begins with 0 */
} model_sampling;

/* Bytes of workspace for model_sample. */
enum { MODEL_SAMPLE_BYTES = 16 * MODEL_VOCAB_SIZE };

/* Chooses a token by its logits [MODEL_VOCAB_SIZE]; `ids` are those so far, looked at for the repetition penalty, and
 * may be null for count 0. INVALID, SIZE, LOGITS. */
MODEL_API model_status model_sample(const float *logits, model_sampling *how, const int32_t *ids, size_t count,
                                    void *workspace, size_t bytes, int32_t *out_id);
