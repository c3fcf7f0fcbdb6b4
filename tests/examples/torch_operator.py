"""torch_operator.py EXAMPLE [DEVICE]: the operator of examples/torch on the CPU and, where there is one,
on a GPU; or on one of them. Skipped (77) without torch. HPA_TORCH_LIBRARY or pkg-config says which libhpa."""

import importlib.util
import sys

if importlib.util.find_spec("torch") is None:
    print(f"skipped: {sys.executable} has no torch")
    sys.exit(77)

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, sys.argv[1])
from hpa_torch import Knobs, attention, choose, keep_masks  # noqa: E402

SMALL = Knobs(top_k=16, window=16, sink=16, block_q=16, block_k=16)


def tensors(device, dtype=torch.float64, tokens=70, heads=4, kv_heads=2, dim=8, seed=0):
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.randn(1, n, tokens, dim, device=device, dtype=dtype, generator=generator,
                        requires_grad=True) for n in (heads, kv_heads, kv_heads)]


def gradients(out, inputs, seed=1):
    generator = torch.Generator(out.device).manual_seed(seed)
    weights = torch.randn(out.shape, device=out.device, dtype=out.dtype, generator=generator)
    return torch.autograd.grad((out * weights).sum(), inputs)


def expect(condition, what):
    if not condition:
        sys.exit(f"expected {what}")


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b))


def dense_when_all_is_kept(device):
    q, k, v = tensors(device)
    out, lse = attention(q, k, v, Knobs(top_k=70), return_lse=True)
    dense = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out, dense)
    for a, b in zip(gradients(out, (q, k, v)), gradients(dense, (q, k, v))):
        torch.testing.assert_close(a, b)
    scores = q @ k.repeat_interleave(2, 1).mT / 8 ** 0.5
    future = torch.ones(70, 70, device=device, dtype=torch.bool).triu(1)
    torch.testing.assert_close(lse, scores.masked_fill(future, -torch.inf).logsumexp(-1))


def numeric_gradients(device):
    q, k, v = tensors(device, tokens=40, heads=2, kv_heads=1)
    mask = choose(q, k, SMALL)
    expect(torch.autograd.gradcheck(
        lambda *inputs: attention(*inputs, SMALL, mask=mask, return_lse=True), (q, k, v)),
        "gradients of out and lse to pass gradcheck")


def operator_contract(device):
    q, k, v = tensors(device)
    knobs = SMALL.numbers()
    torch.library.opcheck(torch.ops.hpa.mask.default, (q.detach(), k.detach(), knobs, 0.0))
    mask = choose(q, k, SMALL)
    torch.library.opcheck(torch.ops.hpa.forward.default, (mask, q, k, v, knobs, 0.0))
    with torch.no_grad():
        out, lse = torch.ops.hpa.forward(mask, q, k, v, knobs, 0.0)
        inputs = (mask, q.detach(), k.detach(), v.detach(), out, lse, torch.ones_like(out))
    for d_lse in (None, torch.ones_like(lse)):
        torch.library.opcheck(torch.ops.hpa.backward.default, (*inputs, d_lse, knobs, 0.0))


def strides(device):
    """Views into one packed buffer, and gradients that are expanded, give the same bits as copies."""
    packed = torch.randn(2, 70, 3, 4, 8, device=device, dtype=torch.float64)
    views = [x.permute(0, 2, 1, 3).detach().requires_grad_() for x in packed.unbind(2)]
    copies = [x.detach().contiguous().requires_grad_() for x in views]
    turned = [x.detach().mT.contiguous().mT.requires_grad_() for x in views]
    expected = torch.autograd.grad(attention(*copies, SMALL).sum(), copies)
    for inputs in (views, turned):
        out = attention(*inputs, SMALL)
        expect(equal(torch.autograd.grad(out.sum(), inputs), expected), "equal bits")


def compiled_whole(device):
    def loss(q, k, v):
        return (attention(torch.tanh(q), k, v, SMALL) ** 2).sum()

    q, k, v = tensors(device, dtype=torch.float32)
    eager = torch.autograd.grad(loss(q, k, v), (q, k, v))
    compiled = torch.compile(loss, fullgraph=True)
    for a, b in zip(torch.autograd.grad(compiled(q, k, v), (q, k, v)), eager):
        torch.testing.assert_close(a, b)


class CountMasks(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function == torch.ops.hpa.mask.default
        return function(*args, **(kwargs or {}))


def checkpointed(device):
    def block(q, k, v):
        return attention(torch.sin(q), torch.cos(k), v, SMALL)

    q, k, v = tensors(device)
    plain = gradients(block(q, k, v), (q, k, v))
    with CountMasks() as searches:
        out = checkpoint(block, q, k, v, use_reentrant=False)
        again = gradients(out, (q, k, v))
    expect(equal(plain, again) and searches.count == 2, "equal bits, the mask chosen twice")
    with CountMasks() as searches:
        out = checkpoint(block, q, k, v, use_reentrant=False, context_fn=keep_masks)
        kept = gradients(out, (q, k, v))
    expect(equal(plain, kept) and searches.count == 1, "equal bits, the mask chosen once")


def refusals(device):
    q, k, v = tensors(device)
    for call, words in ((lambda: attention(q, k[:, :, :, :4], v, SMALL), "in.k"),
                        (lambda: attention(q, k, v, Knobs(block_k=48)), "block_k is 48"),
                        (lambda: attention(q.int(), k, v), "expected float64"),
                        (lambda: attention(q, k, v, SMALL, mask=torch.zeros(
                            8, device=device, dtype=torch.uint8)), "mask has 8 bytes")):
        try:
            call()
        except RuntimeError as error:
            expect(words in str(error), f"'{words}' in '{error}'")
        else:
            expect(False, f"an error about {words}")


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(256, 512), torch.nn.Linear(256, 256)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (8, 64)).transpose(1, 2).split((4, 2, 2), 1)
        knobs = Knobs(top_k=128, window=128)
        return x + self.out(attention(q, k, v, knobs).transpose(1, 2).flatten(-2))


def captured(device):
    """A training step in a CUDA graph, optimizer included: replays give the bits of the eager steps."""
    def trainer():
        torch.manual_seed(0)
        layer = Layer().to(device, torch.bfloat16)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, capturable=True)

        def step(x):
            optimizer.zero_grad()
            loss = (layer(x).float() - x.float().roll(1, 1)).square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()
        return layer, step

    batches = torch.randn(6, 1, 1024, 256, device=device, dtype=torch.bfloat16)
    eager, step = trainer()
    expected = [step(x) for x in batches]
    layer, step = trainer()
    given = batches[0].clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # three steps warm up, as a capture must not be the first
        losses = [step(given.copy_(x)) for x in batches[:3]]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(given)
    for x in batches[3:]:
        given.copy_(x)
        graph.replay()
        losses.append(loss.clone())
    expect(equal(losses, expected) and losses[-1] < losses[0], "equal bits of the losses, going down")
    expect(equal(layer.parameters(), eager.parameters()), "equal bits of the weights")


def on_the_current_stream(device):
    """Inputs that another stream is late to write are waited for on that stream alone."""
    q, k, v = tensors(device, dtype=torch.bfloat16, tokens=1024, dim=64)
    expected = attention(q, k, v, SMALL).detach()
    late = [torch.zeros_like(x) for x in (q, k, v)]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side), torch.no_grad():
        torch.cuda._sleep(200_000_000)
        for x, value in zip(late, (q, k, v)):
            x.copy_(value)
        out = attention(*late, SMALL)
        expect(not side.query(), "attention to be enqueued, not waited for")
    side.synchronize()
    expect(torch.equal(out, expected), "equal bits on another stream")


TESTS = (dense_when_all_is_kept, numeric_gradients, operator_contract, strides, compiled_whole,
         checkpointed, refusals)
for device, tests in (("cpu", TESTS), ("cuda", (*TESTS, on_the_current_stream, captured))):
    if device not in (sys.argv[2:] or ("cpu", "cuda")):
        continue
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: only the CPU was tested")
        continue
    for test in tests:
        test(device)
        print(f"{test.__name__} on {device}: passed", flush=True)
