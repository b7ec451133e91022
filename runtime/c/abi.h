/* @TITLE@
 *
 * Errors. A function returns a status or cannot fail; the statuses that it may return stand in capitals at the end of
 * its comment. A failing call changes nothing, and sets no out parameter. Nothing here prints, aborts or ends the process.
 * Units. Sizes are in bytes; positions, capacities and counts are in tokens.
 * Memory. What a function takes may not be null unless it says so, and stays the caller's. A call uses it until it
 * returns, but for weights (used until model_close) and for a session's memory. Only model_open allocates.
 * Threads. Any function may be called from any thread, and several at once on one model, as long as no session,
 * workspace or output is in two calls at once. A call leaves the floating-point state of its thread as it was.
 * Bits. Results are the same whatever the number of threads, and however tokens are split over calls and shared calls.
 * Version. MODEL_ABI counts changes of this header that old programs would not survive: it and model_describe()->abi
 * are to be equal. Structs that a caller fills begin with their size, so that newer ones may have more at their end. */
#ifndef MODEL_H
#define MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define MODEL_API __declspec(dllexport)
#else
#define MODEL_API __attribute__((visibility("default")))
#endif

enum {
  MODEL_ABI = 1,
  MODEL_ALIGNMENT = 64, /* bytes, of weights, sessions and workspaces: their addresses are multiples of it */
  @CONSTANTS@
};

typedef enum model_status {
  MODEL_OK,
  MODEL_INVALID, /* an argument is out of its range, null or not aligned */
  MODEL_CPU,     /* the CPU lacks a feature that each variant in this library, or the one asked for, needs */
  MODEL_WEIGHTS, /* the weights are not those that the model was compiled with: another size, or other bytes */
  MODEL_SYSTEM,  /* the system gave no memory or no threads */
  MODEL_SIZE,    /* the memory given is smaller than its size function says */
  MODEL_CONTEXT, /* the tokens do not fit into the session's memory or the model's context */
  MODEL_EVICTED, /* the position is further back than a windowed layer remembers */
  MODEL_DAMAGED, /* a saved session is truncated or altered, or belongs to another model */
  MODEL_TABLES,  /* the text tables are damaged, or not this model's */
  MODEL_NO_TEXT, /* the model was opened without text tables, or they have no chat format */
  MODEL_ENCODING, /* the text is no UTF-8 */
  MODEL_TEMPLATE, /* the model's chat template refuses these messages, or the library does not know what it does */
  MODEL_LOGITS   /* the logits have a NaN, or no finite greatest */
} model_status;

/* What a status means and what to do, in one line of constant text; never null, of whatever number. */
MODEL_API const char *model_message(model_status status);

typedef struct model_info {
  int32_t abi;
  int32_t vocab_size; /* of a model with text; 0 for any other */
  int32_t context;    /* most positions of a session; these two are 0 for what is no language model */
  int32_t chunk;      /* most tokens of one eval */
  size_t weights_bytes;
  const char *name;
  const char *target;       /* the variant: the kind of CPU that its code is for */
  const char *cpu_features; /* that the variant needs, separated by spaces, as in Linux's /proc/cpuinfo */
  const char *targets;      /* all variants in this library, separated by spaces, the best first */
  const char *output;       /* what model_eval gives of a wanted token: "logits" or "embeddings"; "" without one */
  int32_t output_width;     /* floats of that: vocab_size logits, or the model's width; 0 without one */
} model_info;

/* A loaded model: the weights and a pool of threads. Any number may be open, of this and of other models. */
typedef struct model_model model_model;

/* Facts about an open model, or for null about what model_open would choose on this CPU (the least variant where it
 * can run none), for as long as the library is loaded. Only target and cpu_features differ between variants. */
MODEL_API const model_info *model_describe(const model_model *model);

/* Calls task(argument, i) once for each i of [0, count), in any order, on any threads, at once or one after another,
 * and returns when all are done. */
typedef void (*model_parallel_for)(void *pool, int32_t count, void (*task)(void *argument, int32_t i), void *argument);

typedef struct model_open_options {
  size_t size;         /* sizeof(model_open_options); all that follows it may be zero where the weights are built in */
  const void *weights; /* the whole weights file, mapped or read, kept until model_close */
  size_t weights_bytes; /* 0: the weights that are built in */
  int32_t threads;    /* workers of one call, its caller included; 0: one for each processor */
  int32_t pin;        /* not 0: each of the model's own threads stays on one processor (on Linux; elsewhere ignored) */
  const char *target; /* a variant by name; null: the best that this CPU can run. Results have the same bits */
  model_parallel_for parallel_for; /* the host's threads, which may serve several calls at once; null: own threads */
  void *pool;                       /* what parallel_for is given */
  int32_t unchecked; /* not 0: only the size of given weights is compared. 0: all bytes are, about one token's time */
  const void *text;  /* the text tables, kept until model_close, aligned like weights; null: those built in, if any */
  size_t text_bytes;
} model_open_options;

/* The weights that are built into this library, and their bytes; null and 0 where they are a file beside it. */
MODEL_API const void *model_weights(size_t *out_bytes);

/* Checks the CPU, the weights and the text tables, starts the threads. The caller ends it with model_close.
 * INVALID, CPU, WEIGHTS, TABLES, SYSTEM. */
MODEL_API model_status model_open(const model_open_options *options, model_model **out_model);

/* Ends the threads and frees the model; null is let pass. No call on the model may be running. */
MODEL_API void model_close(model_model *model);

/* Of calls on one model from several host threads at once, one has the model's threads: the others do their work on
 * their own. */
