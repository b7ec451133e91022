module @tiny_qwen2_one_T1_R1_C16 {
// layer(attn_norm.weight, attn_output.weight, attn_q.bias+attn_k.bias+attn_v.bias, attn_q.weight+attn_k.weight+attn_v.weight, ffn_down.weight, ffn_gate.weight+ffn_up.weight, ffn_norm.weight, x, cos, sin, sequence, position, k, v)
func.func private @layer(
    %0: tensor<64xf32>,
    %1: tensor<64x2xf16>,
    %2: tensor<64x2x32xui8>,
    %3: tensor<128xf32>,
    %4: tensor<128x2xf16>,
    %5: tensor<128x2x32xui8>,
    %6: tensor<64x4xf16>,
    %7: tensor<64x4x32xui8>,
    %8: tensor<256x2xf16>,
    %9: tensor<256x2x32xui8>,
    %10: tensor<64xf32>,
    %11: tensor<1x64xf32>,
    %12: tensor<1x8xf32>,
    %13: tensor<1x8xf32>,
    %14: tensor<1xi32>,
    %15: tensor<1xi32>,
    %16: tensor<1x2x16x16xf32>,
    %17: tensor<1x2x16x16xf32>) -> (tensor<1x64xf32>, tensor<1x2x16x16xf32>, tensor<1x2x16x16xf32>) {
  // attention.norm
  %18 = stablehlo.constant dense<1.000000000e+00> : tensor<f32>
  %19 = stablehlo.broadcast_in_dim %18, dims = [] : (tensor<f32>) -> tensor<1x64xf32>
  %20 = stablehlo.multiply %11, %11 : tensor<1x64xf32>
  %21 = stablehlo.constant dense<0.000000000e+00> : tensor<f32>
  %22 = stablehlo.reduce(%20 init: %21) applies stablehlo.add across dimensions = [1] : (tensor<1x64xf32>, tensor<f32>) -> tensor<1xf32>
  %23 = stablehlo.constant dense<6.400000000e+01> : tensor<f32>
  %24 = stablehlo.broadcast_in_dim %23, dims = [] : (tensor<f32>) -> tensor<1xf32>
  %25 = stablehlo.divide %22, %24 : tensor<1xf32>
  %26 = stablehlo.broadcast_in_dim %25, dims = [0] : (tensor<1xf32>) -> tensor<1x64xf32>
  %27 = stablehlo.constant dense<9.999999747e-06> : tensor<f32>
  %28 = stablehlo.broadcast_in_dim %27, dims = [] : (tensor<f32>) -> tensor<1x64xf32>
  %29 = stablehlo.add %26, %28 : tensor<1x64xf32>
  %30 = stablehlo.sqrt %29 : tensor<1x64xf32>
  %31 = stablehlo.divide %19, %30 : tensor<1x64xf32>
  %32 = stablehlo.multiply %11, %31 : tensor<1x64xf32>
  %33 = stablehlo.broadcast_in_dim %0, dims = [1] : (tensor<64xf32>) -> tensor<1x64xf32>
  %34 = stablehlo.multiply %32, %33 : tensor<1x64xf32>
  // attention.q+k+v
  %35 = stablehlo.reshape %34 : (tensor<1x64xf32>) -> tensor<2x32xf32>
  %36 = stablehlo.broadcast_in_dim %35, dims = [1, 2] : (tensor<2x32xf32>) -> tensor<128x2x32xf32>
  %37 = stablehlo.bitcast_convert %5 : (tensor<128x2x32xui8>) -> tensor<128x2x32xi8>
  %38 = stablehlo.convert %37 : (tensor<128x2x32xi8>) -> tensor<128x2x32xf32>
  %39 = stablehlo.multiply %38, %36 : tensor<128x2x32xf32>
  %40 = stablehlo.convert %4 : (tensor<128x2xf16>) -> tensor<128x2xf32>
  %41 = stablehlo.broadcast_in_dim %40, dims = [0, 1] : (tensor<128x2xf32>) -> tensor<128x2x32xf32>
  %42 = stablehlo.multiply %39, %41 : tensor<128x2x32xf32>
  %43 = stablehlo.reduce(%42 init: %21) applies stablehlo.add across dimensions = [1, 2] : (tensor<128x2x32xf32>, tensor<f32>) -> tensor<128xf32>
  %44 = stablehlo.reshape %43 : (tensor<128xf32>) -> tensor<1x128xf32>
  %45 = stablehlo.broadcast_in_dim %3, dims = [1] : (tensor<128xf32>) -> tensor<1x128xf32>
  %46 = stablehlo.add %44, %45 : tensor<1x128xf32>
  // attention.q
  %47 = stablehlo.slice %46 [0:1, 0:64] : (tensor<1x128xf32>) -> tensor<1x64xf32>
  // attention
  %48 = stablehlo.reshape %47 : (tensor<1x64xf32>) -> tensor<1x4x16xf32>
  %49 = stablehlo.slice %48 [0:1, 0:4, 0:8] : (tensor<1x4x16xf32>) -> tensor<1x4x8xf32>
  %50 = stablehlo.broadcast_in_dim %12, dims = [0, 2] : (tensor<1x8xf32>) -> tensor<1x4x8xf32>
  %51 = stablehlo.multiply %49, %50 : tensor<1x4x8xf32>
  %52 = stablehlo.slice %48 [0:1, 0:4, 8:16] : (tensor<1x4x16xf32>) -> tensor<1x4x8xf32>
  %53 = stablehlo.broadcast_in_dim %13, dims = [0, 2] : (tensor<1x8xf32>) -> tensor<1x4x8xf32>
  %54 = stablehlo.multiply %52, %53 : tensor<1x4x8xf32>
  %55 = stablehlo.subtract %51, %54 : tensor<1x4x8xf32>
  %56 = stablehlo.multiply %52, %50 : tensor<1x4x8xf32>
  %57 = stablehlo.multiply %49, %53 : tensor<1x4x8xf32>
  %58 = stablehlo.add %56, %57 : tensor<1x4x8xf32>
  %59 = stablehlo.concatenate %55, %58, dim = 2 : (tensor<1x4x8xf32>, tensor<1x4x8xf32>) -> tensor<1x4x16xf32>
  // attention.k
  %60 = stablehlo.slice %46 [0:1, 64:96] : (tensor<1x128xf32>) -> tensor<1x32xf32>
  // attention
  %61 = stablehlo.reshape %60 : (tensor<1x32xf32>) -> tensor<1x2x16xf32>
  %62 = stablehlo.slice %61 [0:1, 0:2, 0:8] : (tensor<1x2x16xf32>) -> tensor<1x2x8xf32>
  %63 = stablehlo.broadcast_in_dim %12, dims = [0, 2] : (tensor<1x8xf32>) -> tensor<1x2x8xf32>
  %64 = stablehlo.multiply %62, %63 : tensor<1x2x8xf32>
  %65 = stablehlo.slice %61 [0:1, 0:2, 8:16] : (tensor<1x2x16xf32>) -> tensor<1x2x8xf32>
  %66 = stablehlo.broadcast_in_dim %13, dims = [0, 2] : (tensor<1x8xf32>) -> tensor<1x2x8xf32>
  %67 = stablehlo.multiply %65, %66 : tensor<1x2x8xf32>
  %68 = stablehlo.subtract %64, %67 : tensor<1x2x8xf32>
  %69 = stablehlo.multiply %65, %63 : tensor<1x2x8xf32>
  %70 = stablehlo.multiply %62, %66 : tensor<1x2x8xf32>
  %71 = stablehlo.add %69, %70 : tensor<1x2x8xf32>
  %72 = stablehlo.concatenate %68, %71, dim = 2 : (tensor<1x2x8xf32>, tensor<1x2x8xf32>) -> tensor<1x2x16xf32>
  %73 = stablehlo.constant dense<0> : tensor<i32>
  %74 = stablehlo.reshape %15 : (tensor<1xi32>) -> tensor<i32>
  %75 = stablehlo.transpose %72, dims = [1, 0, 2] : (tensor<1x2x16xf32>) -> tensor<2x1x16xf32>
  %76 = stablehlo.reshape %75 : (tensor<2x1x16xf32>) -> tensor<1x2x1x16xf32>
  %77 = stablehlo.dynamic_slice %16, %73, %73, %74, %73, sizes = [1, 2, 1, 16] : (tensor<1x2x16x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x2x1x16xf32>
  %78 = stablehlo.constant dense<1> : tensor<1xi32>
  %79 = stablehlo.compare LT, %14, %78, SIGNED : (tensor<1xi32>, tensor<1xi32>) -> tensor<1xi1>
  %80 = stablehlo.constant dense<0> : tensor<1xi32>
  %81 = stablehlo.compare GE, %14, %80, SIGNED : (tensor<1xi32>, tensor<1xi32>) -> tensor<1xi1>
  %82 = stablehlo.and %81, %79 : tensor<1xi1>
  %83 = stablehlo.broadcast_in_dim %82, dims = [2] : (tensor<1xi1>) -> tensor<1x2x1x16xi1>
  %84 = stablehlo.select %83, %76, %77 : tensor<1x2x1x16xi1>, tensor<1x2x1x16xf32>
  %85 = stablehlo.dynamic_update_slice %16, %84, %73, %73, %74, %73 : (tensor<1x2x16x16xf32>, tensor<1x2x1x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x2x16x16xf32>
  // attention.v
  %86 = stablehlo.slice %46 [0:1, 96:128] : (tensor<1x128xf32>) -> tensor<1x32xf32>
  // attention
  %87 = stablehlo.reshape %86 : (tensor<1x32xf32>) -> tensor<1x2x16xf32>
  %88 = stablehlo.reshape %15 : (tensor<1xi32>) -> tensor<i32>
  %89 = stablehlo.transpose %87, dims = [1, 0, 2] : (tensor<1x2x16xf32>) -> tensor<2x1x16xf32>
  %90 = stablehlo.reshape %89 : (tensor<2x1x16xf32>) -> tensor<1x2x1x16xf32>
  %91 = stablehlo.dynamic_slice %17, %73, %73, %88, %73, sizes = [1, 2, 1, 16] : (tensor<1x2x16x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x2x1x16xf32>
  %92 = stablehlo.compare LT, %14, %78, SIGNED : (tensor<1xi32>, tensor<1xi32>) -> tensor<1xi1>
  %93 = stablehlo.compare GE, %14, %80, SIGNED : (tensor<1xi32>, tensor<1xi32>) -> tensor<1xi1>
  %94 = stablehlo.and %93, %92 : tensor<1xi1>
  %95 = stablehlo.broadcast_in_dim %94, dims = [2] : (tensor<1xi1>) -> tensor<1x2x1x16xi1>
  %96 = stablehlo.select %95, %90, %91 : tensor<1x2x1x16xi1>, tensor<1x2x1x16xf32>
  %97 = stablehlo.dynamic_update_slice %17, %96, %73, %73, %88, %73 : (tensor<1x2x16x16xf32>, tensor<1x2x1x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x2x16x16xf32>
  %98 = stablehlo.reshape %59 : (tensor<1x4x16xf32>) -> tensor<1x2x2x16xf32>
  %99 = stablehlo.reshape %85 : (tensor<1x2x16x16xf32>) -> tensor<2x16x16xf32>
  %100 = stablehlo.reshape %97 : (tensor<1x2x16x16xf32>) -> tensor<2x16x16xf32>
  %101 = stablehlo.broadcast_in_dim %98, dims = [0, 1, 2, 4] : (tensor<1x2x2x16xf32>) -> tensor<1x2x2x16x16xf32>
  %102 = stablehlo.broadcast_in_dim %99, dims = [1, 3, 4] : (tensor<2x16x16xf32>) -> tensor<1x2x2x16x16xf32>
  %103 = stablehlo.multiply %101, %102 : tensor<1x2x2x16x16xf32>
  %104 = stablehlo.reduce(%103 init: %21) applies stablehlo.add across dimensions = [4] : (tensor<1x2x2x16x16xf32>, tensor<f32>) -> tensor<1x2x2x16xf32>
  %105 = stablehlo.constant dense<2.500000000e-01> : tensor<1x2x2x16xf32>
  %106 = stablehlo.multiply %104, %105 : tensor<1x2x2x16xf32>
  %107 = stablehlo.iota dim = 0 : tensor<16xi32>
  %108 = stablehlo.compare LT, %14, %78, SIGNED : (tensor<1xi32>, tensor<1xi32>) -> tensor<1xi1>
  %109 = stablehlo.compare GE, %14, %80, SIGNED : (tensor<1xi32>, tensor<1xi32>) -> tensor<1xi1>
  %110 = stablehlo.and %109, %108 : tensor<1xi1>
  %111 = stablehlo.broadcast_in_dim %110, dims = [0] : (tensor<1xi1>) -> tensor<1x2x2x16xi1>
  %112 = stablehlo.broadcast_in_dim %15, dims = [0] : (tensor<1xi32>) -> tensor<1x2x2x16xi32>
  %113 = stablehlo.broadcast_in_dim %107, dims = [3] : (tensor<16xi32>) -> tensor<1x2x2x16xi32>
  %114 = stablehlo.subtract %112, %113 : tensor<1x2x2x16xi32>
  %115 = stablehlo.constant dense<0> : tensor<1x2x2x16xi32>
  %116 = stablehlo.compare GE, %114, %115, SIGNED : (tensor<1x2x2x16xi32>, tensor<1x2x2x16xi32>) -> tensor<1x2x2x16xi1>
  %117 = stablehlo.and %116, %111 : tensor<1x2x2x16xi1>
  %118 = stablehlo.constant dense<-3.402823466e+38> : tensor<1x2x2x16xf32>
  %119 = stablehlo.select %117, %106, %118 : tensor<1x2x2x16xi1>, tensor<1x2x2x16xf32>
  %120 = stablehlo.constant dense<0xFF800000> : tensor<f32>
  %121 = stablehlo.reduce(%119 init: %120) applies stablehlo.maximum across dimensions = [3] : (tensor<1x2x2x16xf32>, tensor<f32>) -> tensor<1x2x2xf32>
  %122 = stablehlo.broadcast_in_dim %121, dims = [0, 1, 2] : (tensor<1x2x2xf32>) -> tensor<1x2x2x16xf32>
  %123 = stablehlo.subtract %119, %122 : tensor<1x2x2x16xf32>
  %124 = stablehlo.exponential %123 : tensor<1x2x2x16xf32>
  %125 = stablehlo.constant dense<0.000000000e+00> : tensor<1x2x2x16xf32>
  %126 = stablehlo.select %117, %124, %125 : tensor<1x2x2x16xi1>, tensor<1x2x2x16xf32>
  %127 = stablehlo.reduce(%126 init: %21) applies stablehlo.add across dimensions = [3] : (tensor<1x2x2x16xf32>, tensor<f32>) -> tensor<1x2x2xf32>
  %128 = stablehlo.constant dense<1.175494351e-38> : tensor<1x2x2xf32>
  %129 = stablehlo.maximum %127, %128 : tensor<1x2x2xf32>
  %130 = stablehlo.broadcast_in_dim %126, dims = [0, 1, 2, 3] : (tensor<1x2x2x16xf32>) -> tensor<1x2x2x16x16xf32>
  %131 = stablehlo.broadcast_in_dim %100, dims = [1, 3, 4] : (tensor<2x16x16xf32>) -> tensor<1x2x2x16x16xf32>
  %132 = stablehlo.multiply %130, %131 : tensor<1x2x2x16x16xf32>
  %133 = stablehlo.reduce(%132 init: %21) applies stablehlo.add across dimensions = [3] : (tensor<1x2x2x16x16xf32>, tensor<f32>) -> tensor<1x2x2x16xf32>
  %134 = stablehlo.broadcast_in_dim %129, dims = [0, 1, 2] : (tensor<1x2x2xf32>) -> tensor<1x2x2x16xf32>
  %135 = stablehlo.divide %133, %134 : tensor<1x2x2x16xf32>
  %136 = stablehlo.reshape %135 : (tensor<1x2x2x16xf32>) -> tensor<1x4x16xf32>
  %137 = stablehlo.reshape %136 : (tensor<1x4x16xf32>) -> tensor<1x64xf32>
  // attention.output
  %138 = stablehlo.reshape %137 : (tensor<1x64xf32>) -> tensor<2x32xf32>
  %139 = stablehlo.broadcast_in_dim %138, dims = [1, 2] : (tensor<2x32xf32>) -> tensor<64x2x32xf32>
  %140 = stablehlo.bitcast_convert %2 : (tensor<64x2x32xui8>) -> tensor<64x2x32xi8>
  %141 = stablehlo.convert %140 : (tensor<64x2x32xi8>) -> tensor<64x2x32xf32>
  %142 = stablehlo.multiply %141, %139 : tensor<64x2x32xf32>
  %143 = stablehlo.convert %1 : (tensor<64x2xf16>) -> tensor<64x2xf32>
  %144 = stablehlo.broadcast_in_dim %143, dims = [0, 1] : (tensor<64x2xf32>) -> tensor<64x2x32xf32>
  %145 = stablehlo.multiply %142, %144 : tensor<64x2x32xf32>
  %146 = stablehlo.reduce(%145 init: %21) applies stablehlo.add across dimensions = [1, 2] : (tensor<64x2x32xf32>, tensor<f32>) -> tensor<64xf32>
  %147 = stablehlo.reshape %146 : (tensor<64xf32>) -> tensor<1x64xf32>
  %148 = stablehlo.add %11, %147 : tensor<1x64xf32>
  // feed_forward.norm
  %149 = stablehlo.multiply %148, %148 : tensor<1x64xf32>
  %150 = stablehlo.reduce(%149 init: %21) applies stablehlo.add across dimensions = [1] : (tensor<1x64xf32>, tensor<f32>) -> tensor<1xf32>
  %151 = stablehlo.divide %150, %24 : tensor<1xf32>
  %152 = stablehlo.broadcast_in_dim %151, dims = [0] : (tensor<1xf32>) -> tensor<1x64xf32>
  %153 = stablehlo.add %152, %28 : tensor<1x64xf32>
  %154 = stablehlo.sqrt %153 : tensor<1x64xf32>
  %155 = stablehlo.divide %19, %154 : tensor<1x64xf32>
  %156 = stablehlo.multiply %148, %155 : tensor<1x64xf32>
  %157 = stablehlo.broadcast_in_dim %10, dims = [1] : (tensor<64xf32>) -> tensor<1x64xf32>
  %158 = stablehlo.multiply %156, %157 : tensor<1x64xf32>
  // feed_forward.gate+up
  %159 = stablehlo.reshape %158 : (tensor<1x64xf32>) -> tensor<2x32xf32>
  %160 = stablehlo.broadcast_in_dim %159, dims = [1, 2] : (tensor<2x32xf32>) -> tensor<256x2x32xf32>
  %161 = stablehlo.bitcast_convert %9 : (tensor<256x2x32xui8>) -> tensor<256x2x32xi8>
  %162 = stablehlo.convert %161 : (tensor<256x2x32xi8>) -> tensor<256x2x32xf32>
  %163 = stablehlo.multiply %162, %160 : tensor<256x2x32xf32>
  %164 = stablehlo.convert %8 : (tensor<256x2xf16>) -> tensor<256x2xf32>
  %165 = stablehlo.broadcast_in_dim %164, dims = [0, 1] : (tensor<256x2xf32>) -> tensor<256x2x32xf32>
  %166 = stablehlo.multiply %163, %165 : tensor<256x2x32xf32>
  %167 = stablehlo.reduce(%166 init: %21) applies stablehlo.add across dimensions = [1, 2] : (tensor<256x2x32xf32>, tensor<f32>) -> tensor<256xf32>
  %168 = stablehlo.reshape %167 : (tensor<256xf32>) -> tensor<1x256xf32>
  // feed_forward.gate
  %169 = stablehlo.slice %168 [0:1, 0:128] : (tensor<1x256xf32>) -> tensor<1x128xf32>
  // feed_forward
  %170 = stablehlo.broadcast_in_dim %18, dims = [] : (tensor<f32>) -> tensor<1x128xf32>
  %171 = stablehlo.negate %169 : tensor<1x128xf32>
  %172 = stablehlo.exponential %171 : tensor<1x128xf32>
  %173 = stablehlo.add %170, %172 : tensor<1x128xf32>
  %174 = stablehlo.divide %169, %173 : tensor<1x128xf32>
  // feed_forward.up
  %175 = stablehlo.slice %168 [0:1, 128:256] : (tensor<1x256xf32>) -> tensor<1x128xf32>
  // feed_forward
  %176 = stablehlo.multiply %174, %175 : tensor<1x128xf32>
  // feed_forward.down
  %177 = stablehlo.reshape %176 : (tensor<1x128xf32>) -> tensor<4x32xf32>
  %178 = stablehlo.broadcast_in_dim %177, dims = [1, 2] : (tensor<4x32xf32>) -> tensor<64x4x32xf32>
  %179 = stablehlo.bitcast_convert %7 : (tensor<64x4x32xui8>) -> tensor<64x4x32xi8>
  %180 = stablehlo.convert %179 : (tensor<64x4x32xi8>) -> tensor<64x4x32xf32>
  %181 = stablehlo.multiply %180, %178 : tensor<64x4x32xf32>
  %182 = stablehlo.convert %6 : (tensor<64x4xf16>) -> tensor<64x4xf32>
  %183 = stablehlo.broadcast_in_dim %182, dims = [0, 1] : (tensor<64x4xf32>) -> tensor<64x4x32xf32>
  %184 = stablehlo.multiply %181, %183 : tensor<64x4x32xf32>
  %185 = stablehlo.reduce(%184 init: %21) applies stablehlo.add across dimensions = [1, 2] : (tensor<64x4x32xf32>, tensor<f32>) -> tensor<64xf32>
  %186 = stablehlo.reshape %185 : (tensor<64xf32>) -> tensor<1x64xf32>
  %187 = stablehlo.add %148, %186 : tensor<1x64xf32>
  return %187, %85, %97 : tensor<1x64xf32>, tensor<1x2x16x16xf32>, tensor<1x2x16x16xf32>
}

// step(tokens, sequence, position, rows, token_embd.weight, output_norm.weight, output.weight, blk.0.attn_norm.weight, blk.0.attn_q.weight+blk.0.attn_k.weight+blk.0.attn_v.weight, blk.0.attn_output.weight, blk.0.ffn_norm.weight, blk.0.ffn_gate.weight+blk.0.ffn_up.weight, blk.0.ffn_down.weight, blk.0.attn_q.bias+blk.0.attn_k.bias+blk.0.attn_v.bias, blk.1.attn_norm.weight, blk.1.attn_q.weight+blk.1.attn_k.weight+blk.1.attn_v.weight, blk.1.attn_output.weight, blk.1.ffn_norm.weight, blk.1.ffn_gate.weight+blk.1.ffn_up.weight, blk.1.ffn_down.weight, blk.1.attn_q.bias+blk.1.attn_k.bias+blk.1.attn_v.bias, layers.0.k, layers.0.v, layers.1.k, layers.1.v)
func.func public @main(
    %0: tensor<1xi32>,
    %1: tensor<1xi32>,
    %2: tensor<1xi32>,
    %3: tensor<1xi32>,
    %4: tensor<320x2xf16>,
    %5: tensor<320x2x32xui8>,
    %6: tensor<64xf32>,
    %7: tensor<320x2xf16>,
    %8: tensor<320x2x32xui8>,
    %9: tensor<64xf32>,
    %10: tensor<128x2xf16>,
    %11: tensor<128x2x32xui8>,
    %12: tensor<64x2xf16>,
    %13: tensor<64x2x32xui8>,
    %14: tensor<64xf32>,
    %15: tensor<256x2xf16>,
    %16: tensor<256x2x32xui8>,
    %17: tensor<64x4xf16>,
    %18: tensor<64x4x32xui8>,
    %19: tensor<128xf32>,
    %20: tensor<64xf32>,
    %21: tensor<128x2xf16>,
    %22: tensor<128x2x32xui8>,
    %23: tensor<64x2xf16>,
    %24: tensor<64x2x32xui8>,
    %25: tensor<64xf32>,
    %26: tensor<256x2xf16>,
    %27: tensor<256x2x32xui8>,
    %28: tensor<64x4xf16>,
    %29: tensor<64x4x32xui8>,
    %30: tensor<128xf32>,
    %31: tensor<1x2x16x16xf32> {tf.aliasing_output = 1 : i32},
    %32: tensor<1x2x16x16xf32> {tf.aliasing_output = 2 : i32},
    %33: tensor<1x2x16x16xf32> {tf.aliasing_output = 3 : i32},
    %34: tensor<1x2x16x16xf32> {tf.aliasing_output = 4 : i32}) -> (tensor<1x320xf32>, tensor<1x2x16x16xf32>, tensor<1x2x16x16xf32>, tensor<1x2x16x16xf32>, tensor<1x2x16x16xf32>) {
  %35 = stablehlo.reshape %0 : (tensor<1xi32>) -> tensor<1x1xi32>
  %36 = "stablehlo.gather"(%4, %35) <{dimension_numbers = #stablehlo.gather<offset_dims = [1], collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = 1>, indices_are_sorted = false, slice_sizes = array<i64: 1, 2>}> : (tensor<320x2xf16>, tensor<1x1xi32>) -> tensor<1x2xf16>
  %37 = stablehlo.reshape %0 : (tensor<1xi32>) -> tensor<1x1xi32>
  %38 = "stablehlo.gather"(%5, %37) <{dimension_numbers = #stablehlo.gather<offset_dims = [1, 2], collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = 1>, indices_are_sorted = false, slice_sizes = array<i64: 1, 2, 32>}> : (tensor<320x2x32xui8>, tensor<1x1xi32>) -> tensor<1x2x32xui8>
  %39 = stablehlo.reshape %38 : (tensor<1x2x32xui8>) -> tensor<1x2x1x32xui8>
  %40 = stablehlo.bitcast_convert %39 : (tensor<1x2x1x32xui8>) -> tensor<1x2x1x32xi8>
  %41 = stablehlo.convert %40 : (tensor<1x2x1x32xi8>) -> tensor<1x2x1x32xf32>
  %42 = stablehlo.convert %36 : (tensor<1x2xf16>) -> tensor<1x2xf32>
  %43 = stablehlo.broadcast_in_dim %42, dims = [0, 1] : (tensor<1x2xf32>) -> tensor<1x2x1x32xf32>
  %44 = stablehlo.multiply %41, %43 : tensor<1x2x1x32xf32>
  %45 = stablehlo.reshape %44 : (tensor<1x2x1x32xf32>) -> tensor<1x64xf32>
  %46 = stablehlo.convert %2 : (tensor<1xi32>) -> tensor<1xf32>
  %47 = stablehlo.broadcast_in_dim %46, dims = [0] : (tensor<1xf32>) -> tensor<1x8xf32>
  %48 = stablehlo.constant dense<"0x0000803F8718363EE286013D9C44B83B6F12833A53773A39B3A20438C1B0BC36"> : tensor<8xf32>
  %49 = stablehlo.broadcast_in_dim %48, dims = [1] : (tensor<8xf32>) -> tensor<1x8xf32>
  %50 = stablehlo.multiply %47, %49 : tensor<1x8xf32>
  %51 = stablehlo.cosine %50 : tensor<1x8xf32>
  %52 = stablehlo.constant dense<1.000000000e+00> : tensor<f32>
  %53 = stablehlo.broadcast_in_dim %52, dims = [] : (tensor<f32>) -> tensor<1x8xf32>
  %54 = stablehlo.multiply %51, %53 : tensor<1x8xf32>
  %55 = stablehlo.sine %50 : tensor<1x8xf32>
  %56 = stablehlo.multiply %55, %53 : tensor<1x8xf32>
  // layers.0
  %57:3 = func.call @layer(%9, %12, %13, %19, %10, %11, %17, %18, %15, %16, %14, %45, %54, %56, %1, %2, %31, %32) : (tensor<64xf32>, tensor<64x2xf16>, tensor<64x2x32xui8>, tensor<128xf32>, tensor<128x2xf16>, tensor<128x2x32xui8>, tensor<64x4xf16>, tensor<64x4x32xui8>, tensor<256x2xf16>, tensor<256x2x32xui8>, tensor<64xf32>, tensor<1x64xf32>, tensor<1x8xf32>, tensor<1x8xf32>, tensor<1xi32>, tensor<1xi32>, tensor<1x2x16x16xf32>, tensor<1x2x16x16xf32>) -> (tensor<1x64xf32>, tensor<1x2x16x16xf32>, tensor<1x2x16x16xf32>)
  // layers.1
  %58:3 = func.call @layer(%20, %23, %24, %30, %21, %22, %28, %29, %26, %27, %25, %57#0, %54, %56, %1, %2, %33, %34) : (tensor<64xf32>, tensor<64x2xf16>, tensor<64x2x32xui8>, tensor<128xf32>, tensor<128x2xf16>, tensor<128x2x32xui8>, tensor<64x4xf16>, tensor<64x4x32xui8>, tensor<256x2xf16>, tensor<256x2x32xui8>, tensor<64xf32>, tensor<1x64xf32>, tensor<1x8xf32>, tensor<1x8xf32>, tensor<1xi32>, tensor<1xi32>, tensor<1x2x16x16xf32>, tensor<1x2x16x16xf32>) -> (tensor<1x64xf32>, tensor<1x2x16x16xf32>, tensor<1x2x16x16xf32>)
  %59 = stablehlo.reshape %3 : (tensor<1xi32>) -> tensor<1x1xi32>
  %60 = "stablehlo.gather"(%58#0, %59) <{dimension_numbers = #stablehlo.gather<offset_dims = [1], collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = 1>, indices_are_sorted = false, slice_sizes = array<i64: 1, 64>}> : (tensor<1x64xf32>, tensor<1x1xi32>) -> tensor<1x64xf32>
  // output_norm
  %61 = stablehlo.broadcast_in_dim %52, dims = [] : (tensor<f32>) -> tensor<1x64xf32>
  %62 = stablehlo.multiply %60, %60 : tensor<1x64xf32>
  %63 = stablehlo.constant dense<0.000000000e+00> : tensor<f32>
  %64 = stablehlo.reduce(%62 init: %63) applies stablehlo.add across dimensions = [1] : (tensor<1x64xf32>, tensor<f32>) -> tensor<1xf32>
  %65 = stablehlo.constant dense<6.400000000e+01> : tensor<f32>
  %66 = stablehlo.broadcast_in_dim %65, dims = [] : (tensor<f32>) -> tensor<1xf32>
  %67 = stablehlo.divide %64, %66 : tensor<1xf32>
  %68 = stablehlo.broadcast_in_dim %67, dims = [0] : (tensor<1xf32>) -> tensor<1x64xf32>
  %69 = stablehlo.constant dense<9.999999747e-06> : tensor<f32>
  %70 = stablehlo.broadcast_in_dim %69, dims = [] : (tensor<f32>) -> tensor<1x64xf32>
  %71 = stablehlo.add %68, %70 : tensor<1x64xf32>
  %72 = stablehlo.sqrt %71 : tensor<1x64xf32>
  %73 = stablehlo.divide %61, %72 : tensor<1x64xf32>
  %74 = stablehlo.multiply %60, %73 : tensor<1x64xf32>
  %75 = stablehlo.broadcast_in_dim %6, dims = [1] : (tensor<64xf32>) -> tensor<1x64xf32>
  %76 = stablehlo.multiply %74, %75 : tensor<1x64xf32>
  // output
  %77 = stablehlo.reshape %76 : (tensor<1x64xf32>) -> tensor<2x32xf32>
  %78 = stablehlo.broadcast_in_dim %77, dims = [1, 2] : (tensor<2x32xf32>) -> tensor<320x2x32xf32>
  %79 = stablehlo.bitcast_convert %8 : (tensor<320x2x32xui8>) -> tensor<320x2x32xi8>
  %80 = stablehlo.convert %79 : (tensor<320x2x32xi8>) -> tensor<320x2x32xf32>
  %81 = stablehlo.multiply %80, %78 : tensor<320x2x32xf32>
  %82 = stablehlo.convert %7 : (tensor<320x2xf16>) -> tensor<320x2xf32>
  %83 = stablehlo.broadcast_in_dim %82, dims = [0, 1] : (tensor<320x2xf32>) -> tensor<320x2x32xf32>
  %84 = stablehlo.multiply %81, %83 : tensor<320x2x32xf32>
  %85 = stablehlo.reduce(%84 init: %63) applies stablehlo.add across dimensions = [1, 2] : (tensor<320x2x32xf32>, tensor<f32>) -> tensor<320xf32>
  %86 = stablehlo.reshape %85 : (tensor<320xf32>) -> tensor<1x320xf32>
  return %86, %57#1, %57#2, %58#1, %58#2 : tensor<1x320xf32>, tensor<1x2x16x16xf32>, tensor<1x2x16x16xf32>, tensor<1x2x16x16xf32>, tensor<1x2x16x16xf32>
}
}
