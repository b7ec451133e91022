// Continues a text; libmodel.a and model.h lie beside this file: go build main.go && ./main "Once upon a time"
package main

/*
#cgo CFLAGS: -I${SRCDIR}
#cgo LDFLAGS: ${SRCDIR}/libmodel.a -lm -pthread
#include <stdlib.h>
#include "model.h"
*/
import "C"

import (
	"log"
	"os"
	"unsafe"
)

const most = 32 // tokens to make
func check(status C.model_status) {
	if status != C.MODEL_OK {
		log.Fatal(C.GoString(C.model_message(status)))
	}
}

func take(bytes C.size_t) unsafe.Pointer { // memory that Go does not move, aligned as the model asks for it
	return C.aligned_alloc(C.MODEL_ALIGNMENT, (bytes+C.MODEL_ALIGNMENT-1)/C.MODEL_ALIGNMENT*C.MODEL_ALIGNMENT)
}

func main() {
	prompt := append(os.Args, "The capital of France is")[1]
	var model *C.model_model
	check(C.model_open(&C.model_open_options{size: C.sizeof_model_open_options}, &model))
	defer C.model_close(model)

	text, textBytes := C.CString(prompt), C.size_t(len(prompt))
	scratchBytes := C.model_tokenize_workspace_bytes(model, textBytes)
	ids := unsafe.Slice((*C.int32_t)(take(4*(C.MODEL_MAX_TOKENS+most))), C.MODEL_MAX_TOKENS+most)
	var count C.size_t
	check(C.model_tokenize(model, text, textBytes, 0, take(scratchBytes), scratchBytes, &ids[0], C.MODEL_MAX_TOKENS, &count))

	sessionBytes, workspaceBytes := C.model_session_bytes(C.int32_t(count)+most), C.model_workspace_bytes(model, C.int32_t(count), 1)
	workspace, choosing, logits := take(workspaceBytes), take(C.MODEL_SAMPLE_BYTES), (*C.float)(take(4*C.MODEL_VOCAB_SIZE))
	var session *C.model_session
	check(C.model_session_init(model, take(sessionBytes), sessionBytes, &session))
	how := C.model_sampling{size: C.sizeof_model_sampling} // the likeliest token each time
	decoder, piece, bytes := C.model_decoder{}, [256]byte{}, C.size_t(0)
	for fed, end := C.size_t(0), count+most; count < end; count++ {
		item := C.model_item{session, &ids[fed], C.int32_t(count - fed), 1, logits}
		check(C.model_eval(model, workspace, workspaceBytes, &item, 1))
		check(C.model_sample(logits, &how, &ids[0], count, choosing, C.MODEL_SAMPLE_BYTES, &ids[count]))
		if C.model_is_end(model, ids[count]) != 0 {
			break
		}
		check(C.model_detokenize(model, &decoder, &ids[count], 1, (*C.char)(unsafe.Pointer(&piece[0])), 256, &bytes))
		os.Stdout.Write(piece[:bytes])
		fed = count
	}
	os.Stdout.WriteString("\n")
}
