/* The part of the PJRT C interface, version 0, that the host calls. A struct begins with the size that the caller
 * knows of it, so that plugins of later minor versions read no further; the table of functions only grows. */
#ifndef PJRT_H
#define PJRT_H

#include <stddef.h>
#include <stdint.h>

typedef struct pjrt_error pjrt_error;
typedef struct pjrt_event pjrt_event;
typedef struct pjrt_client pjrt_client;
typedef struct pjrt_device pjrt_device;
typedef struct pjrt_buffer pjrt_buffer;
typedef struct pjrt_executable pjrt_executable;

#define PJRT_MAJOR 0
#define PJRT_HEAD size_t size; void *extensions

/* Functions by their place in the table. */
enum {
  PJRT_ERROR_DESTROY = 0, PJRT_ERROR_MESSAGE = 1, PJRT_PLUGIN_INITIALIZE = 3, PJRT_EVENT_DESTROY = 5,
  PJRT_EVENT_AWAIT = 8, PJRT_CLIENT_CREATE = 10, PJRT_CLIENT_DESTROY = 11, PJRT_CLIENT_PLATFORM_NAME = 12,
  PJRT_CLIENT_ADDRESSABLE_DEVICES = 16, PJRT_CLIENT_COMPILE = 20, PJRT_BUFFER_FROM_HOST = 22,
  PJRT_EXECUTABLE_DESTROY = 50, PJRT_EXECUTE = 55, PJRT_BUFFER_DESTROY = 58, PJRT_BUFFER_TO_HOST = 70,
  PJRT_FUNCTIONS = 71
};

typedef struct { PJRT_HEAD; int32_t major, minor; } pjrt_version;
typedef struct { PJRT_HEAD; pjrt_version version; pjrt_error *(*functions[PJRT_FUNCTIONS])(void *arguments); } pjrt_api;

/* Element types by their numbers in PJRT_Buffer_Type. */
enum { PJRT_S8 = 2, PJRT_S32 = 4, PJRT_U8 = 6, PJRT_U16 = 7, PJRT_F16 = 10, PJRT_F32 = 11, PJRT_BF16 = 13 };
enum { PJRT_UNTIL_TRANSFERRED = 1 };

typedef struct { PJRT_HEAD; void *object; } pjrt_one; /* what destroys, awaits or initialises */
typedef struct { PJRT_HEAD; const pjrt_error *error; const char *message; size_t length; } pjrt_message;
typedef struct {
  PJRT_HEAD;
  const void *options; size_t option_count;
  void *get, *get_argument, *put, *put_argument;
  pjrt_client *client; /* out */
  void *try_get, *try_get_argument;
} pjrt_create;
typedef struct { PJRT_HEAD; pjrt_client *client; const char *name; size_t length; } pjrt_platform;
typedef struct { PJRT_HEAD; pjrt_client *client; pjrt_device **devices; size_t count; } pjrt_devices;
typedef struct { PJRT_HEAD; char *code; size_t length; const char *format; size_t format_length; } pjrt_program;
typedef struct {
  PJRT_HEAD;
  pjrt_client *client; const pjrt_program *program; const char *options; size_t options_length;
  pjrt_executable *executable; /* out */
} pjrt_compile;
typedef struct {
  PJRT_HEAD;
  pjrt_client *client; const void *data; int32_t type; const int64_t *dims; size_t rank;
  const int64_t *strides; size_t stride_count;
  int32_t semantics;
  pjrt_device *device; void *memory, *layout;
  pjrt_event *transferred; pjrt_buffer *buffer; /* out */
} pjrt_upload;
typedef struct {
  PJRT_HEAD;
  void *sends, *receives; size_t send_count, receive_count;
  int32_t launch;
  const int64_t *kept; size_t kept_count; /* inputs that are not donated although the program says so */
  void *context; const char *location;
  size_t task_count; int32_t *tasks; int64_t *incarnations;
} pjrt_execute_options;
typedef struct {
  PJRT_HEAD;
  pjrt_executable *executable; pjrt_execute_options *options;
  pjrt_buffer *const *const *arguments; size_t device_count, argument_count;
  pjrt_buffer **const *results; pjrt_event **events; /* out */
  pjrt_device *device;
} pjrt_execute;
typedef struct {
  PJRT_HEAD;
  pjrt_buffer *buffer; void *layout; void *data; size_t length;
  pjrt_event *event; /* out */
} pjrt_download;

#endif
