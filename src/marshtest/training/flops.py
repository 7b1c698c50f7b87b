"""The cost of PyTorch's operations in floating-point operations: 2 for a multiplication with its addition.

*Exact*: matrix products, convolutions and their gradients (groups taken into account), recurrent layers,
fused attention, sparse products by the entries that are stored, bags of embeddings, and elementwise
arithmetic that spreads two tensors over more numbers than either holds, as a matrix product written out
does. A product of complex numbers costs four of real ones.

*Upper bounds*: factorisations, solvers, eigenvalues and singular values, by the counts of Golub and Van
Loan, Matrix Computations; 5 N log2 N for a Fourier transform; the matrix exponential; distances;
interpolation by its taps. Work that a kernel skips (causal attention, 2:4 sparsity, a product of two
sparse matrices) is counted.

*Free*: operations that take a fixed number of steps for each number that they read or write: elementwise
arithmetic, sums, normalisation, pooling, losses, sorting, optimisers and moves.

*Refused*: all other operations, such as those of other libraries, whose kernels nothing sees into. The
owner of such an operation can state its cost with `torch.utils.flop_counter.register_flop_formula`.

A formula is called with the operation's own arguments and its output `out_val`. `rest[4]` below means the
fifth argument after the named ones; the schema of each operation is printed by `torch.ops.aten.NAME`.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from marshtest.plumbing.errors import MarshtestError

Formula = Callable[..., int]  # (the operation's arguments, out_val=its output) → operations

aten = torch.ops.aten


def formula_of(operation: Any) -> Formula | None:
    """The formula of an operation (an overload); None if it is free, a MarshtestError if it is refused."""
    packet = getattr(operation, "_overloadpacket", operation)
    name = getattr(packet, "_qualified_op_name", str(packet))
    formula = (
        FORMULAS.get(name) or FORMULAS.get(name.removesuffix("_")) or flop_registry.get(packet)
    )
    if formula is None and not is_free(operation):
        raise MarshtestError(
            f"budget: the operation {name} has no cost that can be counted. Say what it costs with "
            "torch.utils.flop_counter.register_flop_formula, or use operations of PyTorch."
        )
    return formula


# Products


def stored(tensor: Tensor) -> int:
    """Entries that a tensor holds: all of a dense one, the explicit ones of a sparse one."""
    if tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        return tensor.values().numel()
    return tensor._values().numel() if tensor.is_sparse else tensor.numel()


def product(a: Tensor, b: Tensor) -> int:
    """Cost of [..., m, k] @ [..., k, n]: dense, sparse or ragged matrices, or vectors."""
    if a.is_nested:
        others = b.unbind() if b.is_nested else [b] * a.size(0)
        return sum(map(product, a.unbind(), others))
    rows = a.shape[-2] if a.dim() > 1 else 1
    columns = b.shape[-1] if b.dim() > 1 else 1
    if a.layout == b.layout == torch.strided:
        batch = math.prod(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
        return int(2 * batch * rows * a.shape[-1] * columns)
    # Each stored entry of one factor meets a row, or a column, of the other. What two sparse factors save
    # together depends on where their entries lie.
    return 2 * min(stored(a) * columns, rows * stored(b))


def _of(first: int, second: int) -> Formula:
    """Formula for the product of two of an operation's arguments, given by their places."""
    return lambda *args, **_: product(args[first], args[second])


def _sums(place: int, dim: int = -1) -> Formula:
    """Formula for outputs that are each a sum over a dimension of the argument at a place.

    It does not look at the other factor, which may be packed or quantised in any way.
    """
    return lambda *args, out_val, **_: 2 * out_val.numel() * args[place].size(dim)


def _linear_backward(
    x: Tensor, grad: Tensor, weight: Tensor, mask: Sequence[bool], **_: Any
) -> int:
    # The mask asks for the gradients by input, weight and bias; the bias's is a sum, and free.
    return 2 * x.numel() * weight.shape[0] * sum(mask[:2])


def _grouped(a: Tensor, b: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """Cost of one product for each group; for two matrices, the groups divide the dimension of the sum."""
    return product(a, b) if a.dim() == b.dim() == 2 else 2 * out_val.numel() * a.shape[-1]


def _sampled(pattern: Tensor, a: Tensor, *_: Any, **__: Any) -> int:
    """Cost of a product of which only the entries of a sparse pattern are computed."""
    return 2 * stored(pattern) * a.shape[-1]


def _trilinear(a: Tensor, b: Tensor, c: Tensor, *rest: Any, **_: Any) -> int:
    """Cost of two multiplications and an addition for each entry of the product of all three."""
    # The arguments behind a, b and c say where each gets dimensions of size 1 before they are multiplied.
    shapes = []
    for tensor, expanded in zip((a, b, c), rest, strict=False):
        shape = list(tensor.shape)
        for place in sorted(expanded):
            shape.insert(place, 1)
        shapes.append(shape)
    return int(3 * math.prod(torch.broadcast_shapes(*shapes)))


def _bag(place: int) -> Formula:
    """Formula for a weighted sum of rows: a product with a sparse matrix of one entry for each index."""
    return lambda *args, **_: 2 * args[place].numel() * args[0].shape[-1]


def _held(tensor: Tensor) -> int:
    """Count of the numbers in a tensor; those that `expand` repeats count once."""
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in strides if stride)


def _spread(place: int) -> Formula:
    """Formula for elementwise arithmetic of the two tensors from a place on.

    It is free unless the output holds more numbers than either tensor. A matrix product could otherwise
    be had for nothing: (a[:, :, None] * b[None]).sum(1).
    """

    def formula(*args: Any, out_val: Tensor, **_: Any) -> int:
        a, b = args[place : place + 2]
        # The commonest cases come first: this runs for every addition and multiplication of a training.
        if not isinstance(b, Tensor) or a.numel() == 1 or b.numel() == 1:
            return 0
        size = out_val.numel()
        if (a.numel() == size and a.is_contiguous()) or (b.numel() == size and b.is_contiguous()):
            return 0
        if a.is_nested or not a.layout == b.layout == out_val.layout == torch.strided:
            return 0
        if not (out_val.is_floating_point() or out_val.is_complex()):
            return 0
        return 2 * size if size > max(_held(a), _held(b)) else 0

    return formula


# Convolutions


def convolution(side: Tensor, weight: Tensor) -> int:
    """Cost of a convolution: every place of its output (if transposed, its input) uses each weight once."""
    return 2 * side.shape[0] * math.prod(side.shape[2:]) * weight.numel()


def _conv(x: Tensor, weight: Tensor, *rest: Any, out_val: Tensor, **_: Any) -> int:
    # Arguments: input, weight, bias, stride, padding, dilation, transposed, ...
    return convolution(x if rest[4] else out_val, weight)


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any, **_: Any) -> int:
    """Cost of the gradients by input and weight, those that the mask asks for; each is a forward's."""
    # Overloads have it at different places.
    transposed = next(value for value in rest if isinstance(value, bool))
    return convolution(x if transposed else grad, weight) * int(sum(rest[-1][:2]))


def _conv_fused(x: Tensor, *args: Any, out_val: Tensor, **_: Any) -> int:
    # One overload has the tensor that is added before the weight; behind the weight comes a bias, of one
    # dimension.
    adds = isinstance(args[1], Tensor) and args[1].dim() > 1
    return convolution(out_val, args[1] if adds else args[0])


def _conv_packed(x: Tensor, packed: Any, *_: Any, out_val: Tensor, **__: Any) -> int:
    return convolution(x if packed.transpose() else out_val, packed.weight())


# Recurrent layers: every token passes each weight matrix once, and gates are elementwise


def _recurrent(x: Tensor, weights: Sequence[Tensor], *_: Any, **__: Any) -> int:
    matrices = sum(weight.numel() for weight in weights if weight.dim() == 2)
    return 2 * (x.numel() // x.shape[-1]) * matrices


def _rnn_backward(x: Tensor, weights: Sequence[Tensor], *rest: Any, **_: Any) -> int:
    # The gradient by the input always runs back through time; the mask's fourth asks for the weights'.
    return _recurrent(x, weights) * int(1 + rest[-1][3])


# Attention


def _cudnn_attention(*args: Any, **named: Any) -> int:
    """Cost of the flash kernel, whose arguments lack the fourth, a bias."""
    return int(flop_registry[aten._flash_attention_forward](*args[:3], *args[4:], **named))


def _cudnn_attention_backward(*args: Any, **named: Any) -> int:
    """Cost of the flash kernel, whose arguments lack the seventh to ninth: seed, offset and bias."""
    return int(flop_registry[aten._flash_attention_backward](*args[:6], *args[9:], **named))


def _lengths(texts: Tensor) -> list[int]:
    """Number of tokens of each text of a batch [B, L, E], ragged or not."""
    if texts.is_nested:
        return [text.shape[0] for text in texts.unbind()]
    return [texts.shape[1]] * texts.shape[0]


def _multi_head(query: Tensor, key: Tensor, value: Tensor, width: int, *_: Any, **__: Any) -> int:
    """Cost of three projections, attention in all heads together, and a last projection."""
    queries, keys, values = _lengths(query), _lengths(key), _lengths(value)
    projected = 2 * sum(queries) + sum(keys) + sum(values)
    pairs = sum(map(int.__mul__, queries, keys))
    return 2 * width * width * projected + 4 * width * pairs


def _encoder_layer(x: Tensor, width: int, *rest: Any, **_: Any) -> int:
    """Cost of attention and two linear layers, whose weights are arguments 14 and 16."""
    weights = int(rest[12].numel() + rest[14].numel())
    return _multi_head(x, x, x, width) + 2 * sum(_lengths(x)) * weights


# Linear algebra on each matrix of a batch, with m the larger and n the smaller of its sides


def _matrices(cost: Callable[[int, int], float]) -> Formula:
    return lambda a, *_, **__: _each(a, cost)


def _each(a: Tensor, cost: Callable[[int, int], float]) -> int:
    return round(math.prod(a.shape[:-2]) * cost(max(a.shape[-2:]), min(a.shape[-2:])))


def _lu(m: int, n: int) -> float:
    return m * n * n - n**3 / 3


def _qr(m: int, n: int) -> float:
    return 2 * _lu(m, n)


def _svd(m: int, n: int) -> float:
    return 6.0 * m * n * n + 20 * n**3


def _reflectors(m: int, columns: int, k: int) -> float:
    """Cost of forming so many columns of a product of k reflections of length m."""
    return 4 * m * columns * k - 2 * (m + columns) * k**2 + 4 / 3 * k**3


def _qr_with_q(a: Tensor, mode: str = "reduced", **_: Any) -> int:
    rows, k = a.shape[-2], min(a.shape[-2:])
    columns = {"r": 0, "reduced": k}.get(mode, rows)
    formed = _reflectors(rows, columns, k) if columns else 0.0
    return _each(a, lambda m, n: _qr(m, n) + formed)


def _svd_of(a: Tensor, full_matrices: bool = False, compute_uv: bool = True, **_: Any) -> int:
    if not compute_uv:
        return _each(a, lambda m, n: 4 * m * n * n - 4 / 3 * n**3)
    return _each(a, (lambda m, n: 4.0 * m * m * n + 22 * n**3) if full_matrices else _svd)


def _eigh(a: Tensor, triangle: str = "L", compute_v: bool = True, **_: Any) -> int:
    return _each(a, lambda m, n: (9 if compute_v else 4 / 3) * n**3)


def _back(factor: int, triangles: int = 2) -> Formula:
    """Formula for back substitution in the triangular factors, which the argument at a place holds."""

    def formula(*args: Any, out_val: Any, **_: Any) -> int:
        solution: Tensor = out_val[0] if isinstance(out_val, tuple) else out_val
        return triangles * solution.numel() * int(args[factor].shape[-1])

    return formula


def _solve(a: Tensor, *args: Any, out_val: Any, **_: Any) -> int:
    return _each(a, _lu) + _back(0)(a, *args, out_val=out_val)


def _least_squares(
    a: Tensor, b: Tensor, *_: Any, out_val: Any, driver: str | None = None, **__: Any
) -> int:
    factor = _svd if driver in ("gelsd", "gelss") else _qr
    return _each(a, factor) + 4 * b.numel() * min(a.shape[-2:])


def _exponential(a: Tensor, **_: Any) -> int:
    """Cost of five products, for a polynomial of degree 18, and a squaring a doubling of the norm."""
    norm = float(a.abs().sum(-2).max()) if a.numel() else 0.0
    squarings = math.ceil(math.log2(norm)) if 1 < norm < math.inf else 0
    return _each(a, lambda m, n: 2 * n**3 * (5 + squarings))


# Distances (a difference, a power, a sum), Fourier transforms, interpolation


def _distances(coordinates: int, operations: int = 3) -> Formula:
    """Formula for distances between all pairs; the argument at a place holds the coordinates."""

    def formula(*args: Any, out_val: Tensor, **_: Any) -> int:
        pairs = out_val if coordinates == 0 else args[0]
        return operations * pairs.numel() * int(args[coordinates].shape[-1])

    return formula


def _fourier(a: Tensor, dims: Sequence[int], *_: Any, out_val: Tensor, **__: Any) -> int:
    """Cost of a Fourier transform, 5 N log2 N; half of it if input or output is real."""
    one_real = not (a.is_complex() and out_val.is_complex())
    real = out_val if one_real and a.is_complex() else a
    points = math.prod(real.shape[dim] for dim in dims)
    return round((2.5 if one_real else 5) * real.numel() * math.log2(max(points, 1)))


def _grid_sampled(at: int, passes: int = 1) -> Formula:
    """Formula for a weighted sum of neighbours at each place: 2 along each dimension, 4 if bicubic."""

    def formula(*args: Any, **_: Any) -> int:
        x, grid = args[at], args[at + 1]
        taps = 4 if args[at + 2 : at + 3] == (2,) else 2  # the mode; 2 is bicubic
        dims = int(grid.shape[-1])
        return int(passes * 2 * (grid.numel() // dims) * x.shape[1] * taps**dims)

    return formula


def _interpolated(taps: int, backward: bool = False) -> Formula:
    """Formula for a weighted sum of neighbours, `taps` along each dimension of an image.

    An antialiased kernel grows with the factor by which the image shrinks; the others are counted like it.
    """

    def formula(x: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
        source, target = (out_val, x) if backward else (x, out_val)
        sides = zip(source.shape[2:], target.shape[2:], strict=True)
        return 2 * target.numel() * math.prod(taps * math.ceil(max(a / b, 1)) for a, b in sides)

    return formula


def _of_complex(formula: Formula) -> Formula:
    """The same formula times four if the first tensor is complex."""

    def counted(*args: Any, **named: Any) -> int:
        first = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
        return formula(*args, **named) * (4 if first.is_complex() else 1)

    return counted


# A name without "::" is aten's. Names of backends (cudnn, mkldnn, miopen, mps) are here beside the general
# ones, since dispatch may be seen before or after it has chosen one.
_BY_FORMULA: list[tuple[Formula, str]] = [
    (_of(0, 1), "mm bmm mv dot vdot matmul _int_mm _sparse_sparse_matmul hspmm quantized::matmul"),
    (_of(1, 2), "addmm baddbmm addmv addbmm _addmm_activation _sparse_addmm sspaddmm"),
    (lambda several, others, **_: sum(map(product, several, others)), "_foreach_mm"),
    (
        _sums(0),
        """linear mkldnn_linear _scaled_mm _scaled_mm_v2 _weight_int8pack_mm _weight_int4pack_mm
        _weight_int4pack_mm_for_cpu _weight_int4pack_mm_with_scales_and_zeros _dyn_quant_matmul_4bit
        _mixed_dtypes_linear _sparse_semi_structured_linear mkldnn::_linear_pointwise mkl::_mkl_linear
        onednn::qlinear_pointwise quantized::linear quantized::linear_relu quantized::linear_dynamic
        quantized::linear_relu_dynamic quantized::linear_dynamic_fp16 quantized::linear_leaky_relu
        quantized::linear_relu_dynamic_fp16 quantized::linear_tanh""",
    ),
    (_sums(1, 0), "_cslt_sparse_mm"),
    (_sums(2, 0), "_sparse_semi_structured_mm"),
    (_sums(3, 0), "_sparse_semi_structured_addmm"),
    (lambda *_, out_val, **__: 2 * out_val.numel(), "addr"),
    (_linear_backward, "linear_backward mkldnn_linear_backward"),
    (lambda grad, a, b, mask, **_: product(a, b) * sum(mask), "matmul_backward"),
    (_grouped, "_grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2"),
    (_sampled, "sparse_sampled_addmm _sparse_mm_reduce_impl"),
    (
        lambda pattern, grad, *rest, **_: int(2 * stored(pattern) * grad.shape[-1] * sum(rest[-1])),
        "_sparse_mm_reduce_impl_backward",
    ),
    (lambda powers, by, **_: 2 * by.numel() * powers[0].numel(), "_compute_linear_combination"),
    (_trilinear, "_trilinear"),
    (
        _bag(1),
        """_embedding_bag _embedding_bag_forward_only _embedding_bag_backward
        _embedding_bag_dense_backward""",
    ),
    (_bag(2), "_embedding_bag_per_sample_weights_backward"),
    (_spread(0), "mul div add sub rsub"),
    (_spread(1), "addcmul addcdiv"),
    (_conv, "convolution _convolution convolution_overrideable"),
    (_conv_backward, "convolution_backward convolution_backward_overrideable"),
    (
        lambda x, weight, *_, out_val, **__: convolution(out_val, weight),
        """_slow_conv2d_forward slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d
        _conv_depthwise2d conv_depthwise3d _nnpack_spatial_convolution cudnn_convolution
        cudnn_convolution_relu cudnn_convolution_add_relu miopen_convolution mkldnn_convolution
        miopen_depthwise_convolution miopen_convolution_relu miopen_convolution_add_relu
        _mps_convolution""",
    ),
    (
        lambda x, weight, *_, **__: convolution(x, weight),
        """slow_conv_transpose2d slow_conv_transpose3d cudnn_convolution_transpose
        miopen_convolution_transpose _mps_convolution_transpose""",
    ),
    (_conv_fused, "mkldnn::_convolution_pointwise"),
    (
        _conv_packed,
        """quantized::conv1d quantized::conv1d_relu quantized::conv2d quantized::conv2d_relu
        quantized::conv3d quantized::conv3d_relu quantized::conv1d_dynamic quantized::conv2d_dynamic
        quantized::conv3d_dynamic quantized::conv_transpose1d quantized::conv_transpose2d
        quantized::conv_transpose3d""",
    ),
    (
        lambda x, weight, *_, out_val, **__: 2 * out_val[..., 0].numel() * weight.numel(),
        "conv_tbc",
    ),
    (_recurrent, "_cudnn_rnn miopen_rnn"),
    (_rnn_backward, "_cudnn_rnn_backward miopen_rnn_backward"),
    (lambda *args, **_: _recurrent(args[0], args[1:3]), "mkldnn_rnn_layer"),
    (lambda *args, **_: 2 * _recurrent(args[0], args[1:3]), "mkldnn_rnn_layer_backward"),
    (lambda x, state, weights, *_, **__: _recurrent(x, weights), "_lstm_mps"),
    (lambda *args, **_: 2 * _recurrent(args[5], args[8]), "lstm_mps_backward"),  # input and weights
    (
        lambda query, key, value, *_, **__: int(sdpa_flop_count(query.shape, key.shape, value.shape)),
        """_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math_for_mps
        _scaled_dot_product_fused_attention_overrideable _triton_scaled_dot_attention""",
    ),
    (
        lambda *args, **_: int(sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))),
        """_scaled_dot_product_flash_attention_for_cpu_backward
        _scaled_dot_product_fused_attention_overrideable_backward""",
    ),
    (_cudnn_attention, "_cudnn_attention_forward"),
    (_cudnn_attention_backward, "_cudnn_attention_backward"),
    (
        lambda out, *args, **named: int(flop_registry[aten._flash_attention_forward](*args, **named)),
        "_flash_attention_forward_no_dropout_inplace",
    ),
    (_multi_head, "_native_multi_head_attention _triton_multi_head_attention"),
    (_encoder_layer, "_transformer_encoder_layer_fwd"),
    (_matrices(_lu), "linalg_lu linalg_lu_factor_ex _linalg_det _linalg_slogdet"),
    (_matrices(lambda m, n: n**3 / 3), "cholesky linalg_cholesky_ex linalg_ldl_factor_ex"),
    (_matrices(lambda m, n: 2 / 3 * n**3), "cholesky_inverse"),
    (_matrices(lambda m, n: 2.0 * n**3), "linalg_inv_ex"),
    (_matrices(lambda m, n: _svd(m, n) + 2 * m * n * n), "linalg_pinv"),
    (_matrices(lambda m, n: 10.0 * n**3), "_linalg_eigvals linalg_eigvals"),
    (_matrices(lambda m, n: 25.0 * n**3), "linalg_eig"),
    (_matrices(_qr), "geqrf"),
    (_qr_with_q, "linalg_qr"),
    (
        lambda a, tau, *_, **__: _each(a, lambda m, n: _reflectors(m, n, tau.shape[-1])),
        "linalg_householder_product",
    ),
    (lambda a, tau, other, *_, **__: 4 * other.numel() * tau.shape[-1], "ormqr"),
    (_svd_of, "_linalg_svd"),
    (_eigh, "_linalg_eigh"),
    (_solve, "_linalg_solve_ex _spsolve"),
    (_back(0), "linalg_lu_solve linalg_ldl_solve"),
    (_back(1), "cholesky_solve _cholesky_solve_helper"),
    (_back(0, 1), "linalg_solve_triangular"),
    (_back(1, 1), "triangular_solve"),
    (_least_squares, "linalg_lstsq"),
    (_exponential, "linalg_matrix_exp"),
    (_distances(0), "_cdist_forward _pdist_forward"),
    (_distances(1, 4), "_cdist_backward _pdist_backward"),
    # The product of both, each widened by its squared norms and by ones.
    (lambda a, b, *_, out_val, **__: 2 * out_val.numel() * (a.shape[-1] + 2), "_euclidean_dist"),
    (_grid_sampled(0), "grid_sampler_2d grid_sampler_3d cudnn_grid_sampler _grid_sampler_2d_cpu_fallback"),
    (_grid_sampled(0, 2), "cudnn_grid_sampler_backward"),
    (
        _grid_sampled(1, 2),
        """grid_sampler_2d_backward grid_sampler_3d_backward
        _grid_sampler_2d_cpu_fallback_backward""",
    ),
    (
        _interpolated(2),
        "upsample_linear1d upsample_bilinear2d upsample_trilinear3d _upsample_bilinear2d_aa",
    ),
    (_interpolated(4), "upsample_bicubic2d _upsample_bicubic2d_aa"),
    (_interpolated(6), "_upsample_lanczos2d_aa"),
    (
        _interpolated(2, backward=True),
        """upsample_linear1d_backward upsample_bilinear2d_backward upsample_trilinear3d_backward
        _upsample_bilinear2d_aa_backward""",
    ),
    (
        _interpolated(4, backward=True),
        "upsample_bicubic2d_backward _upsample_bicubic2d_aa_backward",
    ),
    (_interpolated(6, backward=True), "_upsample_lanczos2d_aa_backward"),
    (_sums(0), "affine_grid_generator cudnn_affine_grid_generator"),
]  # fmt: skip


FORMULAS: dict[str, Formula] = {
    name if "::" in name else f"aten::{name}": _of_complex(formula)
    for formula, names in _BY_FORMULA
    for name in names.split()
} | dict.fromkeys(("aten::_fft_c2c", "aten::_fft_r2c", "aten::_fft_c2r"), _fourier)

# Free by name; so are the operations that PyTorch tags as pointwise, as a reduction or as a view.
_FREE_NAMES = """
    _thnn_fused_lstm_cell_backward_impl glu_backward_jvp softmax log_softmax avg_pool1d
    adaptive_avg_pool1d adaptive_avg_pool2d
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool3d adaptive_max_pool2d
    adaptive_max_pool3d _add_relu allclose _aminmax _amp_foreach_non_finite_check_and_unscale
    _amp_update_scale as_strided_scatter _assert_async _assert_tensor_metadata avg_pool2d
    avg_pool3d batch_norm batch_norm_elemt batch_norm_gather_stats
    batch_norm_gather_stats_with_counts _batch_norm_no_update batch_norm_stats
    batch_norm_update_stats _batch_norm_with_update _batch_norm_with_update_functional bernoulli
    binary_cross_entropy binary_cross_entropy_with_logits bincount binomial block_diag bucketize
    cat cauchy channel_shuffle _chunk_cat _coalesce _coalesced col2im complex constant_pad_nd
    _convert_indices_from_coo_to_csr _convert_indices_from_csr_to_coo
    _convert_weight_to_int4pack _convert_weight_to_int4pack_for_cpu _copy_from
    _copy_from_and_resize copy_sparse_to_sparse _cslt_compress _ctc_loss cudnn_batch_norm
    _cudnn_ctc_loss _cudnn_rnn_flatten_weight cummax _cummax_helper cummin _cummin_helper
    cumprod cumsum dense_dim dequantize diag_embed diagonal_scatter _dimI _dimV _dirichlet_grad
    dist _dyn_quant_pack_4bit_weight embedding embedding_dense embedding_renorm empty_like
    _empty_per_channel_affine_quantized empty_quantized exponential
    _fake_quantize_learnable_per_channel_affine _fake_quantize_learnable_per_tensor_affine
    fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine_cachemask
    _fake_quantize_per_tensor_affine_cachemask_tensor_qparams fill _fill_mem_eff_dropout_mask
    flip floor_divide fractional_max_pool2d fractional_max_pool3d full_like
    _functional_assert_async _functional_assert_scalar _functional_sym_constrain_range
    _functional_sym_constrain_range_for_size _fused_adagrad _fused_adam _fused_adamw
    _fused_dropout _fused_moving_avg_obs_fq_helper _fused_moving_avg_obs_fq_helper_functional
    _fused_rms_norm _fused_sdp_choice _fused_sgd gather geometric glu glu_jvp hardswish
    _has_same_storage_numel hash_tensor histc histogram _histogramdd_bin_edges
    _histogramdd_from_bin_cts _histogramdd_from_bin_tensors huber_loss im2col index index_add
    index_fill index_put _index_put_impl index_reduce index_select int_repr __irshift
    _is_all_true _is_any_true is_coalesced is_pinned is_same_size is_set_to isin
    _jagged_to_padded_dense_forward kthvalue _lazy_clone lift _linalg_check_errors linalg_cross
    linspace _local_scalar_dense log_normal log_sigmoid log_sigmoid_forward _log_softmax
    logcumsumexp _logcumsumexp logspace lu_unpack _make_per_channel_quantized_tensor
    _make_per_tensor_quantized_tensor _masked_scale masked_scatter masked_select _masked_softmax
    max_pool2d max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d median
    miopen_batch_norm miopen_ctc_loss mkldnn_adaptive_avg_pool2d mkldnn_max_pool2d
    mkldnn_max_pool3d mkldnn_reorder_conv2d_weight mkldnn_reorder_conv3d_weight _mkldnn_reshape
    _mkldnn_transpose mode mse_loss multi_margin_loss multilabel_margin_loss
    multilabel_margin_loss_forward multinomial nanmedian native_batch_norm
    _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training native_dropout native_group_norm native_layer_norm
    native_norm new_empty new_empty_strided new_full new_ones new_zeros
    _new_zeros_with_same_feature_meta nll_loss nll_loss2d nll_loss2d_forward nll_loss_forward
    _nnz nonzero nonzero_static normal normal_functional ones_like _pack_padded_sequence
    _padded_dense_to_jagged_forward _philox_key_fold_in _philox_key_split _philox_normal
    _philox_uniform _pin_memory pixel_shuffle pixel_unshuffle poisson polar powsum _prelu_kernel
    put q_per_channel_axis q_per_channel_scales q_per_channel_zero_points q_scale q_zero_point
    qscheme quantize_per_channel quantize_per_tensor quantize_per_tensor_dynamic
    quantized_batch_norm quantized_max_pool1d quantized_max_pool2d quantized_max_pool3d
    rand_like randint_like randn_like random record_stream reflection_pad1d reflection_pad2d
    reflection_pad3d renorm repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d _reshape resize resize_as resize_as_sparse _resize_output roll rot90
    rrelu_with_noise rrelu_with_noise_functional _safe_softmax _sample_dirichlet scatter
    scatter_add scatter_reduce searchsorted _segment_reduce segment_reduce select_scatter set
    slice_scatter smooth_l1_loss soft_margin_loss _softmax sort sparse_compressed_tensor
    _sparse_coo_tensor_with_dims_and_tensors _sparse_csr_prod _sparse_csr_sum sparse_dim
    _sparse_log_softmax sparse_mask _sparse_mask_projection sparse_resize
    sparse_resize_and_clear _sparse_semi_structured_apply _sparse_semi_structured_apply_dense
    _sparse_semi_structured_tile _sparse_softmax _sparse_sum _spdiags _stack stack
    _standard_gamma _standard_gamma_grad take _thnn_fused_gru_cell _thnn_fused_lstm_cell _to
    _to_dense to_mkldnn to_padded_tensor _to_sparse _to_sparse_bsc _to_sparse_bsr _to_sparse_csc
    _to_sparse_csr _to_sparse_semi_structured topk trace _transform_bias_rescale_qkv tril triu
    uniform _unique _unique2 unique_consecutive unique_dim unique_dim_consecutive _unsafe_index
    _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate unsafe_split
    unsafe_split_with_sizes _unsafe_view upsample_nearest1d upsample_nearest2d
    upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d _use_cudnn_ctc_loss _use_miopen_ctc_loss
    _validate_compressed_sparse_indices _weight_norm_interface zero zeros_like
"""
FREE = frozenset(_FREE_NAMES.split())
_FREE_LIBRARIES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "profiler")
_SAME_BUT = re.compile(r"^_foreach_|_copy$|_backward(_data|_reduce|_elemt)?$|(_copy)?_+$")


def is_free(operation: Any) -> bool:
    """Whether an operation of PyTorch takes a fixed number of steps for each number, or none at all."""
    if not isinstance(operation, torch._ops.OpOverload):
        return False
    if operation.namespace in _FREE_LIBRARIES:
        return True
    if operation.namespace not in ("aten", "prim", "prims", "quantized"):
        return False
    schema = operation._schema
    kinds = [str(argument.type) for argument in schema.arguments if not argument.is_out]
    if not any("Tensor" in kind for kind in kinds):
        return True  # without a tensor to read it fills one at most
    if not schema.is_mutable and not any("Tensor" in str(to.type) for to in schema.returns):
        return True  # it answers a question, such as whether two tensors have one size
    return _is_free_name(schema.name.split("::")[1])


def _is_free_name(name: str) -> bool:
    """Whether an operation's name is a free one, or a variant of one: in place, on a list, backward."""
    while (plain := _SAME_BUT.sub("", name)) != name:
        if _tagged(name):
            return True
        name = plain
    return name in FREE or name.startswith("_nested_") or _tagged(name)


def _tagged(name: str) -> bool:
    """Whether PyTorch tags an operation as pointwise or as a reduction, or knows it as a view."""
    packet = getattr(aten, name, None)
    names = packet.overloads() if packet is not None else []
    overloads = [getattr(packet, name) for name in names]
    tags = {torch.Tag.pointwise, torch.Tag.reduction}
    return any(tags & set(overload.tags) or overload.is_view for overload in overloads)
