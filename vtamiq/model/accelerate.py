"""The same computation faster: linear layers by oneDNN where that pays on a CPU, one token of a block, compiled blocks.

PyTorch multiplies float32 matrices on x86 with its BLAS, which uses half of what some CPUs can do; oneDNN is often faster.
"""

import functools
import logging
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

log = logging.getLogger(__name__)

Shape = tuple[int, int]  # outputs and inputs of a linear layer
WORTH = 0.9  # oneDNN is taken where it needs at most this share of the default's time
TRIAL_ROWS = 256  # of the products that are timed: about the tokens of one image
TRIALS = 3
TOLERANCE = 1e-4  # of a trial's largest value; float32 products differ by far less, a wrong one by far more
HINT_ROWS = 512  # rows that the layout of packed weights is chosen for; any number may come


class OneDNNLinear(nn.Linear):
    """An `nn.Linear` that computes with oneDNN where it can: float32 on the CPU, outside autocast and `torch.compile`.

    It shares the parameters of the linear that it stands for. A packed copy of the weights (as much memory again) is made
    on first use without gradients, and anew after they changed.

    Args:
        training_too: compute gradients with oneDNN as well, and pack nothing, because training may change weights unnoticed
            (an exchange with their moving average).
        gelu: the `approximate` of an `nn.GELU` to apply to the outputs: one way through memory less.
    """

    def __init__(self, linear: nn.Linear, training_too: bool = False, gelu: str | None = None):
        _take_parameters(self, linear)
        self.training_too, self.gelu, self._packed = training_too, gelu, {}

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x, 0, self.out_features)

    def rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Outputs `start` … `stop` − 1 alone."""
        weight, bias = _sliced(self, start, stop)
        can = _onednn_can(x, weight)
        if can and not (torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in (x, weight, bias))):
            return _onednn_product(x, weight if self.training_too else self._pack(weight, start, stop), bias, self.gelu)
        y = (_Product.apply if can and self.training_too else F.linear)(x, weight, bias)
        return y if self.gelu is None else F.gelu(y, approximate=self.gelu)

    def _pack(self, weight: Tensor, start: int, stop: int) -> Tensor:
        # Two threads may both pack: what they store is the same.
        state = (self.weight.data_ptr(), 0 if self.weight.is_inference() else self.weight._version)
        packed_state, packed = self._packed.get((start, stop), (None, None))
        if packed_state != state:
            packed = _onednn_pack(weight)
            self._packed[start, stop] = state, packed
        return packed

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": {}}  # opaque to copy and pickle, and made anew on first use


class _Product(torch.autograd.Function):
    """x Wᵀ + b and its gradients by oneDNN, differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)  # (rows, out)
        return (
            # Copies of the transposed weights cost less than what oneDNN loses on strides.
            _onednn_product(gradient, weight.t().contiguous(), None) if of_x else None,
            _onednn_product(rows.t(), x.flatten(0, -2).t().contiguous(), None) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def accelerate(module: nn.Module, *, training: bool = False, shapes: Collection[Shape] | None = None) -> nn.Module:
    """Let linear layers compute with oneDNN, in place, where a quick timing says that it pays; `restore` undoes it.

    Each distinct shape is timed for some milliseconds, and its result compared. Results differ by rounding only.

    Args:
        training: use oneDNN for gradients too.
        shapes: use it for linear layers of these (outputs, inputs) and no others, without timing, if it is right here.
    """

    @functools.cache
    def pays(*shape: int) -> bool:
        return _worth_it(*shape, training) if shapes is None else shape in shapes and onednn_works(*shape)

    restore(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and not _hooked(child) and pays(child.out_features, child.in_features):
                setattr(parent, name, OneDNNLinear(child, training, _absorb_gelu(parent, name)))
    log.debug("oneDNN computes linear layers of these (outputs, inputs): %s", accelerated(module))
    return module


def accelerated(module: nn.Module) -> list[Shape]:
    """Shapes of the linear layers that compute with oneDNN."""
    return sorted({tuple(part.weight.shape) for part in module.modules() if isinstance(part, OneDNNLinear)})


def restore(module: nn.Module) -> nn.Module:
    """Undo `accelerate`, in place: plain linear layers with the same parameters."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, OneDNNLinear):
                plain = nn.Linear.__new__(nn.Linear)
                _take_parameters(plain, child)
                setattr(parent, name, plain)
                if child.gelu is not None:
                    parent.act = nn.GELU(child.gelu).train(parent.training)
    return module


def first_token(block: nn.Module, x: Tensor) -> Tensor:
    """Token 0 of `block(x)`: (B, T, D) → (B, 1, D). Only its own query and MLP are computed.

    A block of another kind, a hooked one, and unfused attention, whose maps are being captured, run as a whole.
    """
    if not _is_plain(block):
        return block(x)[:, :1]
    attention = block.attn
    width, heads = attention.attn_dim, (attention.num_heads, attention.head_dim)
    normed = block.norm1(x)  # (B, T, D)
    query = _linear_rows(attention.qkv, normed[:, :1], 0, width)  # (B, 1, D)
    key, value = _linear_rows(attention.qkv, normed, width, 3 * width).chunk(2, dim=-1)  # (B, T, D) each
    query, key, value = (part.unflatten(-1, heads).transpose(1, 2) for part in (query, key, value))  # (B, heads, ·, ·)
    dropout = attention.attn_drop.p if attention.training else 0.0
    query, key = attention.q_norm(query), attention.k_norm(key)
    looked = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)  # (B, heads, 1, D/heads)
    looked = attention.norm(looked.transpose(1, 2).flatten(2))  # (B, 1, D)
    x = x[:, :1] + block.drop_path1(block.ls1(attention.proj_drop(attention.proj(looked))))  # (B, 1, D)
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _is_plain(block: nn.Module) -> bool:
    """Whether a block is timm's own, fused and unhooked."""
    attention = block.attn
    if type(block) is not Block or type(attention) is not Attention or attention.gate is not None:
        return False
    watched = any(_hooked(part) or "forward" in vars(part) for part in (block, attention, attention.qkv))
    return attention.fused_attn and type(attention.qkv) in (nn.Linear, OneDNNLinear) and not watched


def _linear_rows(linear: nn.Linear, x: Tensor, start: int, stop: int) -> Tensor:
    """Outputs `start` … `stop` − 1 of a linear layer, (…, stop − start), without computing the others."""
    if isinstance(linear, OneDNNLinear):
        return linear.rows(x, start, stop)
    return F.linear(x, *_sliced(linear, start, stop))


def compile_blocks(blocks: nn.ModuleList, width: int, *, training: bool = False) -> bool:
    """Compile transformer blocks (B, T, width) → (B, T, width) in place: one code for all of them, for any B and T.

    The first one is run at once, which takes seconds to minutes. Where that fails, for want of a C++ compiler for example,
    a warning says why and the blocks stay as they were. Copies are not compiled; hooks that are set later are not called.

    `training` compiles gradients now, and scoring on its first use. Returns whether the blocks are compiled.
    """
    for block in blocks:
        block.compile(dynamic=True)
    weight = next(blocks.parameters())
    try:
        with torch.inference_mode(not training), torch.set_grad_enabled(training):
            x = torch.zeros(2, 5, width, device=weight.device, dtype=weight.dtype, requires_grad=training)
            y = blocks[0](x)
            if training:
                torch.autograd.grad(y.sum(), x)
    except Exception as error:  # each stage of the compiler has its own ways of failing
        decompile_blocks(blocks)
        cause = getattr(error, "inner_exception", error)  # of what names the stage only
        reason = f"{type(cause).__name__}: {cause}".strip().splitlines()[0]
        log.warning("torch.compile fails here (%s), so no block is compiled", reason)
        return False
    return True


def decompile_blocks(blocks: nn.ModuleList) -> None:
    """Undo `compile_blocks`, in place."""
    for block in blocks:
        block._compiled_call_impl = None  # PyTorch has no public way back


def _take_parameters(linear: nn.Linear, other: nn.Linear) -> None:
    """Initialise a linear layer with the parameters of another one, instead of drawing new ones."""
    nn.Module.__init__(linear)
    linear.in_features, linear.out_features = other.in_features, other.out_features
    linear.weight, linear.bias, linear.training = other.weight, other.bias, other.training


def _absorb_gelu(parent: nn.Module, name: str) -> str | None:
    """Leave the GELU of a timm MLP to its first layer: which one it is, or None if `name` is another layer."""
    act = getattr(parent, "act", None)
    if type(parent) is not Mlp or name != "fc1" or type(act) is not nn.GELU or _hooked(act):
        return None
    parent.act = nn.Identity().train(act.training)
    return act.approximate


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _sliced(linear: nn.Linear, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
    if (start, stop) == (0, linear.out_features):
        return linear.weight, linear.bias
    return linear.weight[start:stop], None if linear.bias is None else linear.bias[start:stop]


def _onednn_can(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


# PyTorch's compiler emits these two operators on CPUs. They are undocumented, so `onednn_works` tries them first.


def _onednn_pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), HINT_ROWS)


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: str | None = None) -> Tensor:
    activation, algorithm = ("none", "") if gelu is None else ("gelu", gelu)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)


@torch.no_grad()
def onednn_works(outputs: int = 64, inputs: int = 64) -> bool:
    """Whether oneDNN is there and multiplies by a weight (outputs, inputs) rightly, with a GELU after it or without."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight = _trial(outputs, inputs)
    product = F.linear(x, weight)
    expected = {None: product} | {gelu: F.gelu(product, approximate=gelu) for gelu in ("none", "tanh")}
    try:
        packed = _onednn_pack(weight)
        errors = [(_onednn_product(x, packed, None, gelu) - y).abs().max() for gelu, y in expected.items()]
    except (AttributeError, RuntimeError):  # no such operator, or none for this CPU
        return False
    return all(bool(error <= TOLERANCE * product.abs().max()) for error in errors)  # not so for NaN


def _trial(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(rows, inputs, generator=generator) for rows in (TRIAL_ROWS, outputs))


def _worth_it(outputs: int, inputs: int, training: bool) -> bool:
    """Whether oneDNN multiplies by a weight (outputs, inputs) rightly and clearly faster, for training with gradients."""
    if not onednn_works(outputs, inputs):
        return False
    x, weight = (part.requires_grad_(training) for part in _trial(outputs, inputs))
    ours = partial(_Product.apply, x, weight) if training else partial(_onednn_product, x, _onednn_pack(weight))
    products = partial(F.linear, x, weight), partial(ours, None)
    rounds = [[_seconds(product, training) for product in products] for _ in range(1 + TRIALS)]
    default, onednn = map(min, zip(*rounds[1:], strict=True))  # the first to warm up
    return onednn <= WORTH * default


def _seconds(product: Callable[[], Tensor], training: bool) -> float:
    start = time.perf_counter()
    y = product()
    if training:
        y.backward(torch.ones_like(y))
    return time.perf_counter() - start
