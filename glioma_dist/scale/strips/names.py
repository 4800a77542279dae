"""Names of functions of PyTorch by what they need of other strips. What is in no table is refused."""

from __future__ import annotations


def words(text: str) -> list[str]:
    return text.split()


OPERATORS = words(
    """add sub mul div truediv floordiv mod pow rsub radd rmul rdiv rtruediv rpow iadd isub imul idiv itruediv ipow neg
    pos abs and or xor eq ne lt le gt ge"""
)
MATHEMATICS = words(
    """add sub subtract mul multiply div divide true_divide floor_divide remainder fmod pow float_power neg negative
    positive abs absolute sign sgn sqrt rsqrt square exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh tanh asin
    acos atan atan2 erf erfc erfinv reciprocal floor ceil round trunc frac clamp clamp_min clamp_max clip maximum
    minimum fmax fmin lerp addcmul addcdiv hypot logaddexp where masked_fill eq ne lt le gt ge logical_and logical_or
    logical_not logical_xor bitwise_and bitwise_or bitwise_not isnan isinf isfinite nan_to_num xlogy logit sigmoid
    threshold copy"""
)
ACTIVATIONS = words(
    """relu relu6 leaky_relu elu selu celu gelu silu mish hardtanh hardswish hardsigmoid hardshrink softplus softshrink
    softsign tanhshrink logsigmoid log_sigmoid"""
)
POINTWISE = frozenset(
    {f"__{each}__" for each in OPERATORS}
    | {name for each in (*MATHEMATICS, *ACTIVATIONS) for name in (each, each + "_")}
)
"""Functions that compute each element of its own, those in place among them."""
COPIES = frozenset(
    words(
        """clone contiguous detach to type type_as float double half bfloat16 int long bool cpu cuda requires_grad_
        zeros_like ones_like full_like empty_like zero_ fill_ __invert__"""
    )
)
"""Functions of one tensor that give another one of its shape; what else they are given is only looked at."""
MOVED = frozenset({"get T", "get mT"}) | frozenset(
    words(
        """permute transpose swapaxes swapdims movedim moveaxis unsqueeze squeeze unbind chunk split select narrow stack
        t tensor_split channel_shuffle adjoint"""
    )
)
"""Functions after which the rows are still one dimension of each result."""
ALONG = {
    **dict.fromkeys(words("softmax log_softmax softmin cumsum cumprod argmax argmin amax amin max min any all"), 1),
    **dict.fromkeys(words("logsumexp prod sort argsort median glu rms_norm"), 1),
    **{"normalize": 2, "topk": 2},
}
"""Functions along dimensions: where these are among the arguments."""
DIMENSIONS = {"normalize": 1, "glu": -1, "topk": -1, "sort": -1, "argsort": -1}
"""Of these functions, the dimension by default, if it is not all."""
GATHERED = frozenset(
    words(
        """roll flip rot90 repeat_interleave index_select gather take_along_dim adaptive_max_pool2d
        max_pool2d_with_indices grid_sample unfold fold pixel_unshuffle conv1d conv3d baddbmm addmm
        cumulative_trapezoid cdist tril triu"""
    )
)
"""Functions that get the whole map, on all processes."""
DRAWN = frozenset(
    words(
        """alpha_dropout feature_alpha_dropout native_dropout bernoulli bernoulli_ rand randn randint randperm rand_like
        randn_like randint_like normal normal_ uniform_ random_ exponential_ multinomial poisson rrelu rrelu_"""
    )
)
"""Functions that draw at random, refused also for what is no strip."""
DROPOUTS = frozenset(words("dropout dropout_ dropout1d dropout2d dropout3d feature_dropout"))
"""The same, unless they drop nothing."""
LOOKED_AT = frozenset(
    words(
        """dim is_contiguous is_floating_point is_complex element_size get_device __hash__ __repr__ __format__ __str__
        register_hook register_post_accumulate_grad_hook retain_grad new_zeros new_ones new_empty new_full new_tensor
        result_type is_tensor is_storage"""
    )
    + [
        f"get {each}"
        for each in words(
            """dtype device requires_grad is_cuda is_cpu is_mps is_meta layout grad_fn is_leaf is_quantized is_sparse
            is_mkldnn is_nested ndim itemsize _version output_nr _base _backward_hooks"""
        )
    ]
)
"""Functions that look at no element, and those that make a new tensor of a shape that they are given."""
