"""The peers from PyPI (extra `bench`): sparsify, SAELens, a dense step under `torch.compile`.

Each as its own documentation uses it: float32 weights, bfloat16 autocast on CUDA, a fused
`torch.optim.Adam`, TopK without auxiliary loss. sparsify's decoder is a Triton kernel on CUDA and
its own eager fallback elsewhere. SAELens keeps its default of dividing by the decoder's norms
instead of keeping them at 1; the other two project the gradient and renormalise.
"""

import dataclasses
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.activations import Problem
from benchmarks.timing import Contender

RATE = 1e-3
MODULES = {"sparsify": "sparsify", "sae-lens": "sae_lens", "torch.compile": "torch"}


@dataclasses.dataclass(frozen=True)
class Peer:
    """One peer, loaded with a problem: calls without arguments.

    Attributes:
      encode: tokens to whatever the peer takes for a code.
      decode: that code to a reconstruction.
      gradients: loss and the gradients of x, both matrices and both biases.
      step: a training step with Adam.
    """

    encode: Callable[[], Any]
    decode: Callable[[], Any]
    gradients: Callable[[], Any]
    step: Callable[[], Any]


def contenders(problem: Problem, k: int, call: str) -> dict[str, Contender | str]:
    """By name, each peer's `call` (a field of `Peer`), or how to install it."""
    found: dict[str, Contender | str] = {}
    for name, module in MODULES.items():
        if importlib.util.find_spec(module) is None or importlib.util.find_spec("torch") is None:
            found[name] = "not installed: pip install 'emojax[bench]' (Python 3.11)"
            continue
        found[name] = _contender(BUILD[name], problem, k, call)
    return found


def _contender(build: Callable[..., Peer], problem: Problem, k: int, call: str) -> Contender:
    torch: Any = importlib.import_module("torch")
    cuda = torch.cuda.is_available()

    def prepare() -> Callable[[], Any]:
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        torch.set_num_threads(os.cpu_count() or 1)
        device = "cuda" if cuda else "cpu"
        tensors = [
            torch.from_numpy(np.array(a, np.float32)).to(device, torch.float32) for a in problem
        ]
        # The activations have the dtype of the products, the weights are float32.
        tensors[0] = tensors[0].to(torch.bfloat16 if cuda else torch.float32)
        return getattr(build(torch, tensors, k), call)

    def wait(_: Any) -> None:
        if cuda:
            torch.cuda.synchronize()

    def peak() -> float:
        return torch.cuda.max_memory_allocated() / 2**20

    return Contender(prepare, wait, peak if cuda else None, ours=False)


def _autocast(torch: Any, x: Any) -> Any:
    on = x.device.type == "cuda"
    return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=on)


def _peer(
    torch: Any,
    x: Any,
    parameters: list[Any],
    encode: Callable[[Any], Any],
    decode: Callable[[Any], Any],
    loss: Callable[[Any], Any],
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> Peer:
    """The calls, from a code, a decoder, a loss, and what goes on before and after Adam."""
    adam = torch.optim.Adam(parameters, lr=RATE, fused=True)

    @functools.cache
    def code() -> Any:
        return run_encode()

    def run_encode() -> Any:
        with torch.no_grad(), _autocast(torch, x):
            return encode(x)

    def run_decode() -> Any:
        with torch.no_grad(), _autocast(torch, x):
            return decode(code())

    def gradients(x: Any) -> Any:
        for parameter in parameters:
            parameter.grad = None
        with _autocast(torch, x):
            value = loss(x)
        value.backward()
        return value

    def all_gradients() -> Any:
        return gradients(x.detach().requires_grad_())

    def step() -> Any:
        value = gradients(x)
        before()
        adam.step()
        after()
        return value

    return Peer(run_encode, run_decode, all_gradients, step)


def _sparsify(torch: Any, tensors: list[Any], k: int) -> Peer:
    x, w_enc, b_enc, w_dec, b_dec = tensors
    if x.device.type == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    package: Any = importlib.import_module("sparsify")
    settings: Any = importlib.import_module("sparsify.config")
    n, d = w_enc.shape
    coder = package.SparseCoder(d, settings.SparseCoderConfig(num_latents=n, k=k), x.device)
    with torch.no_grad():
        coder.encoder.weight.copy_(w_enc)
        coder.encoder.bias.copy_(b_enc)
        coder.W_dec.copy_(w_dec)
        coder.b_dec.copy_(b_dec)

    def decode(code: Any) -> Any:
        return coder.decode(code.top_acts, code.top_indices)

    return _peer(
        torch,
        x,
        list(coder.parameters()),
        coder.encode,
        decode,
        lambda x: coder(x).fvu,
        coder.remove_gradient_parallel_to_decoder_directions,
        coder.set_decoder_norm_to_unit_norm,
    )


def _sae_lens(torch: Any, tensors: list[Any], k: int) -> Peer:
    x, w_enc, b_enc, w_dec, b_dec = tensors
    package: Any = importlib.import_module("sae_lens")
    inner: Any = importlib.import_module("sae_lens.saes.sae")
    n, d = w_enc.shape
    settings = package.TopKTrainingSAEConfig(
        d_in=d, d_sae=n, k=k, device=str(x.device), dtype="float32"
    )
    sae = package.TopKTrainingSAE(settings)
    with torch.no_grad():
        sae.W_enc.copy_(w_enc.T)
        sae.b_enc.copy_(b_enc)
        sae.W_dec.copy_(w_dec)
        sae.b_dec.copy_(b_dec)

    def loss(x: Any) -> Any:
        return sae.training_forward_pass(inner.TrainStepInput(x, {}, None, 0, False)).loss

    return _peer(torch, x, list(sae.parameters()), sae.encode, sae.decode, loss)


@functools.cache
def _compiled(k: int) -> tuple[Any, Any, Any]:
    """Encoder, decoder and loss of a dense TopK autoencoder, under `torch.compile`."""
    torch: Any = importlib.import_module("torch")

    def encode(x: Any, w_enc: Any, b_enc: Any) -> Any:
        values, indices = torch.topk(torch.nn.functional.linear(x, w_enc, b_enc), k, dim=-1)
        return torch.zeros(x.shape[0], w_enc.shape[0], dtype=values.dtype, device=x.device).scatter(
            -1, indices, torch.relu(values)
        )

    def decode(codes: Any, w_dec: Any, b_dec: Any) -> Any:
        return codes @ w_dec + b_dec

    def loss(x: Any, w_enc: Any, b_enc: Any, w_dec: Any, b_dec: Any) -> Any:
        return (decode(encode(x, w_enc, b_enc), w_dec, b_dec) - x).float().pow(2).mean()

    return torch.compile(encode), torch.compile(decode), torch.compile(loss)


def _dense(torch: Any, tensors: list[Any], k: int) -> Peer:
    x, *weights = tensors
    parameters = [torch.nn.Parameter(weight) for weight in weights]
    w_enc, b_enc, w_dec, b_dec = parameters
    encode, decode, loss = _compiled(k)

    @torch.no_grad()
    def project() -> None:
        w_dec.grad.sub_((w_dec.grad * w_dec).sum(1, keepdim=True) * w_dec)

    @torch.no_grad()
    def renormalise() -> None:
        w_dec.div_(w_dec.norm(dim=1, keepdim=True))

    return _peer(
        torch,
        x,
        parameters,
        lambda x: encode(x, w_enc, b_enc),
        lambda codes: decode(codes, w_dec, b_dec),
        lambda x: loss(x, *parameters),
        project,
        renormalise,
    )


BUILD: dict[str, Callable[..., Peer]] = {
    "sparsify": _sparsify,
    "sae-lens": _sae_lens,
    "torch.compile": _dense,
}
