// Continues a text: rustc -O main.rs -L. -lmodel && ./main "Once upon a time"
use std::ffi::{c_char, c_void, CStr};
use std::io::Write;
const MOST: usize = 32; // tokens to make

#[repr(C)]
struct Item { session: *mut c_void, ids: *const i32, id_count: i32, rows_wanted: i32, logits: *mut f32 }
#[repr(C)] #[derive(Default)]
struct Sampling { size: usize, penalty: f64, window: i32, top_k: i32, top_p: f64, min_p: f64, temperature: f64, seed: u64, draws: u64 }
#[repr(C, align(64))] #[derive(Clone)]
struct Line([u8; 64]); // memory at the alignment that the model asks for

extern "C" {
    fn model_message(status: i32) -> *const c_char;
    fn model_describe(model: *const c_void) -> *const i32; // abi, vocab_size, ...
    fn model_open(options: *const [usize; 16], out: *mut *mut c_void) -> i32;
    fn model_close(model: *mut c_void);
    fn model_session_bytes(positions: i32) -> usize;
    fn model_session_init(model: *mut c_void, memory: *mut Line, bytes: usize, out: *mut *mut c_void) -> i32;
    fn model_workspace_bytes(model: *const c_void, tokens: i32, rows: i32) -> usize;
    fn model_eval(model: *mut c_void, workspace: *mut Line, bytes: usize, items: *const Item, count: usize) -> i32;
    fn model_tokenize_workspace_bytes(model: *const c_void, bytes: usize) -> usize;
    fn model_tokenize(model: *const c_void, text: *const u8, bytes: usize, flags: i32, workspace: *mut Line, size: usize, ids: *mut i32, capacity: usize, out_count: *mut usize) -> i32;
    fn model_detokenize(model: *const c_void, decoder: *mut [i32; 4], ids: *const i32, count: usize, text: *mut u8, capacity: usize, out_bytes: *mut usize) -> i32;
    fn model_is_end(model: *const c_void, id: i32) -> i32;
    fn model_sample(logits: *const f32, how: *mut Sampling, ids: *const i32, count: usize, workspace: *mut Line, bytes: usize, out_id: *mut i32) -> i32;
}

fn check(status: i32) { if status != 0 { panic!("{:?}", unsafe { CStr::from_ptr(model_message(status)) }) } }
fn take(bytes: usize) -> Vec<Line> { vec![Line([0; 64]); bytes / 64 + 1] }
fn main() {
    let prompt = std::env::args().nth(1).unwrap_or("The capital of France is".into());
    unsafe {
        let (mut model, mut session, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        let mut options = [0usize; 16]; // model_open_options: its size, then zeros
        options[0] = 64;
        check(model_open(&options, &mut model));
        let vocabulary = *model_describe(model).add(1) as usize;
        let (mut ids, size) = (vec![0i32; 512 + MOST], model_tokenize_workspace_bytes(model, prompt.len()));
        check(model_tokenize(model, prompt.as_ptr(), prompt.len(), 0, take(size).as_mut_ptr(), size, ids.as_mut_ptr(), 512, &mut count));
        let (size, room) = (model_session_bytes((count + MOST) as i32), model_workspace_bytes(model, count as i32, 1));
        let (mut memory, mut workspace, mut choosing) = (take(size), take(room), take(16 * vocabulary));
        check(model_session_init(model, memory.as_mut_ptr(), size, &mut session));
        let (mut logits, mut how, mut decoder) = (vec![0f32; vocabulary], Sampling { size: 64, ..Default::default() }, [0i32; 4]);
        let (mut fed, end) = (0, count + MOST);
        while count < end {
            let item = Item { session, ids: &ids[fed], id_count: (count - fed) as i32, rows_wanted: 1, logits: logits.as_mut_ptr() };
            check(model_eval(model, workspace.as_mut_ptr(), room, &item, 1));
            let (mut id, mut piece, mut bytes) = (0, [0u8; 256], 0);
            check(model_sample(logits.as_ptr(), &mut how, ids.as_ptr(), count, choosing.as_mut_ptr(), 16 * vocabulary, &mut id));
            if model_is_end(model, id) != 0 { break }
            check(model_detokenize(model, &mut decoder, &id, 1, piece.as_mut_ptr(), 256, &mut bytes));
            std::io::stdout().write_all(&piece[..bytes]).unwrap();
            (fed, ids[count], count) = (count, id, count + 1);
        }
        println!();
        model_close(model);
    }
}
