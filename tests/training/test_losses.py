"""Each method's loss against one written anew from its paper, on a tiny network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from erase_sd.training import METHODS, TRAINERS
from erase_sd.training.bench import Bench, Task
from erase_sd.training.lesson import moving
from erase_sd.training.loop import generator_of
from erase_sd.training.methods.fmn import positions
from erase_sd.training.methods.salun import saliency, salient

TASK = Task(("cat", "small cat"), ("dog", "car"), "owl")


def lesson_of(pipe, method, **options):
    reads = METHODS[method].reads
    task = Task(
        TASK.forget,
        TASK.retain if "retain" in reads else (),
        TASK.toward if "toward" in reads else None,
    )
    bench = Bench(pipe, task, guidance=2.0)
    return bench, METHODS[method].function(bench, METHODS[method].make_options(options))


def shaken(lesson):
    """Move the parameters, so that what is trained and the original are two."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in lesson.parameters.values():
            p += 0.05 * torch.randn(p.shape, generator=generator)


def ddim(network, pipe, x, states, null, ways, guidance):
    """Deterministic DDIM by its formula, over given (t, t') pairs."""
    alphas = pipe.scheduler.alphas_cumprod
    for t, after in ways:
        told, empty = (network(x, t, s).sample for s in (states, null))
        eps = empty + guidance * (told - empty)
        a, b = alphas[t], alphas[after] if after >= 0 else torch.tensor(1.0)
        if pipe.scheduler.config.prediction_type == "v_prediction":
            x0, eps = a.sqrt() * x - (1 - a).sqrt() * eps, a.sqrt() * eps + (1 - a).sqrt() * x
        else:
            x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = b.sqrt() * x0 + (1 - b).sqrt() * eps
    return x


def start(pipe, prompts, batch, ways):
    """What the step's generator gives: prompts, how far, noise."""
    g = generator_of(0, 3)
    pick = torch.randint(0, len(prompts), (batch,), generator=g)
    until = int(torch.randint(0, ways, (), generator=g))
    noise = torch.randn((batch, 4, 8, 8), generator=g)
    times = [round(1000 - i * 1000 / ways) - 1 for i in range(ways)]
    pairs = list(zip(times, [*times[1:], -1], strict=True))
    states = pipe.encode_prompt([prompts[i] for i in pick], "cpu", 1, False)[0]
    null = pipe.encode_prompt([""] * batch, "cpu", 1, False)[0]
    return states, null, noise, pairs[:until], times[until]


@pytest.mark.parametrize("tiny", ["epsilon", "v_prediction"], indirect=True)
@pytest.mark.parametrize("method", ["esd-x", "esd-u"])
def test_esd(tiny, method):
    original = copy.deepcopy(tiny.unet)
    _, lesson = lesson_of(tiny, method, batch=2, way=5, eta=1.5)
    cross = {n for n, _ in original.named_parameters() if ".attn2." in n}
    assert (set(lesson.parameters) == cross) == (method == "esd-x")
    assert not cross & set(lesson.parameters) or method == "esd-x"
    shaken(lesson)
    states, null, x, ways, t = start(tiny, TASK.forget, 2, 5)
    with torch.no_grad():
        x = ddim(tiny.unet, tiny, x, states, null, ways, 3.0)
        e0, ec = original(x, t, null).sample, original(x, t, states).sample
        expected = (tiny.unet(x, t, states).sample - (e0 - 1.5 * (ec - e0))).square().mean()
    assert lesson.loss(generator_of(0, 3)).item() == pytest.approx(expected.item(), rel=1e-4)


def test_esd_u_leaves_what_its_code_leaves(tiny):
    names = moving(tiny.unet, "other")
    assert not [n for n in names if n.startswith(("conv_out", "conv_norm_out", "time_embedding"))]
    assert "conv_in.weight" in names and any(".attn1." in n for n in names)
    assert not any(p.requires_grad for n, p in tiny.unet.named_parameters() if n not in names)


def test_leco(tiny):
    original = copy.deepcopy(tiny.unet)
    _, lesson = lesson_of(tiny, "leco", batch=2, way=5, guidance=0.5, rank=3, alpha=6.0)
    shaken(lesson)
    hooked = copy.deepcopy(original)
    for name, module in hooked.named_modules():  # LoRA as its code has it: beside each layer
        if f"{name}.down" in lesson.parameters:
            down, up = lesson.parameters[f"{name}.down"], lesson.parameters[f"{name}.up"]
            module.register_forward_hook(
                lambda m, args, out, d=down, u=up: out + args[0] @ d.T @ u.T * 2.0
            )
    states, null, x, ways, t = start(tiny, TASK.forget, 2, 5)
    neutral = tiny.encode_prompt(["owl"] * 2, "cpu", 1, False)[0]
    with torch.no_grad():
        x = ddim(hooked, tiny, x, states, null, ways, 3.0)
        named, empty, plain = (original(x, t, s).sample for s in (states, null, neutral))
        wanted = plain - 0.5 * (named - empty)
        expected = (hooked(x, t, states).sample - wanted).square().mean()
    assert lesson.loss(generator_of(0, 3)).item() == pytest.approx(expected.item(), rel=1e-4)
    own = {n.rpartition(".")[0] for n in lesson.parameters}
    assert own == {
        n
        for n, m in original.named_modules()
        if isinstance(m, torch.nn.Linear) and (".attn1." in n or ".attn2." in n)
    }
    assert all(torch.equal(a, b) for a, b in zip(
        original.state_dict().values(), tiny.unet.state_dict().values(), strict=True
    ))  # fmt: skip


def test_fmn(tiny):
    _, lesson = lesson_of(tiny, "fmn", batch=2, images=4, draw_steps=2)
    prompts = ["a photo of cat", "a photo of small cat"]
    latents = Bench(tiny, TASK, guidance=2.0).pictures_of(prompts, 4, 2)
    g = generator_of(0, 3)
    pick = torch.randint(0, 2, (2,), generator=g)
    drawn = torch.randint(0, 4, (2,), generator=g)
    noise = torch.randn((2, 4, 8, 8), generator=g)
    t = torch.randint(0, 1000, (2,), generator=g)
    x = tiny.scheduler.add_noise(latents[drawn], noise, t)
    maps = []

    class Keeping:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
            text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
            q, k, v = (z.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for z in (q, k, v))
            weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)  # (n, heads, pixels, L)
            if encoder_hidden_states is not None:
                maps.append(weights)
            return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))

    reference = copy.deepcopy(tiny.unet)
    for module in reference.modules():
        module._forward_pre_hooks.clear()
    reference.set_attn_processor(Keeping())
    told = [prompts[i] for i in pick]
    with torch.no_grad():
        reference(x, t, tiny.encode_prompt(told, "cpu", 1, False)[0])
    expected = 0.0
    for row, prompt in enumerate(told):
        ids = tiny.tokenizer(prompt, padding="max_length", max_length=77).input_ids
        nouns = tiny.tokenizer(prompt.removeprefix("a photo of "), add_special_tokens=False)
        chosen = [i for i, v in enumerate(ids) if v in {*nouns.input_ids, 1 * ids[-1]}]
        expected += sum(m[row][..., chosen].square().sum().item() for m in maps) / 2
    assert maps
    assert lesson.loss(generator_of(0, 3)).item() == pytest.approx(expected, rel=1e-4)
    lesson.close()
    assert not any(m._forward_pre_hooks for m in tiny.unet.modules())


def test_a_concept_is_found_in_its_sentence(tiny):
    found = positions(tiny.tokenizer, "a photo of ice cream", "ice cream", eos=False)
    assert found.sum() == len(tiny.tokenizer("ice cream", add_special_tokens=False).input_ids)
    assert not found[0] and positions(tiny.tokenizer, "cat", "cat", eos=True)[-1]
    with pytest.raises(ValueError, match="expected the tokens of 'dog' in 'a photo of cat'"):
        positions(tiny.tokenizer, "a photo of cat", "dog", eos=True)


def test_salun(tiny):
    bench, lesson = lesson_of(
        tiny, "salun", batch=3, images=4, draw_steps=2, alpha=0.7, mask_guidance=1.5
    )
    forget = ["a photo of cat", "a photo of small cat"]
    keep = ["a photo of dog", "a photo of car"]
    concept, kept = bench.pictures_of(forget, 4, 2), bench.pictures_of(keep, 4, 2)
    shaken(lesson)
    g = generator_of(0, 3)
    drawn = torch.randint(0, 4, (3,), generator=g)
    noise = torch.randn((3, 4, 8, 8), generator=g)
    t = torch.randint(0, 1000, (3,), generator=g)
    index = torch.randint(0, 4, (3,), generator=g)
    other_noise = torch.randn((3, 4, 8, 8), generator=g)
    s = torch.randint(0, 1000, (3,), generator=g)

    def told(prompts):
        return tiny.encode_prompt(prompts, "cpu", 1, False)[0]

    x = tiny.scheduler.add_noise(concept[drawn], noise, t)
    y = tiny.scheduler.add_noise(kept[index], other_noise, s)
    with torch.no_grad():
        mine = tiny.unet(x, t, told([forget[i % 2] for i in drawn])).sample
        theirs = tiny.unet(x, t, told(["a photo of owl"] * 3)).sample
        rest = tiny.unet(y, s, told([keep[i % 2] for i in index])).sample
        expected = F.mse_loss(mine, theirs) + 0.7 * F.mse_loss(rest, other_noise)
    assert lesson.loss(generator_of(0, 3)).item() == pytest.approx(expected.item(), rel=1e-4)


def test_salience_is_the_gradient_of_the_guided_denoising_loss(tiny):
    task = Task(("cat",), ("dog",))
    bench = Bench(tiny, task, seed=4)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    parameters = moving(tiny.unet, "all")
    options = METHODS["salun"].make_options({"batch": 2, "mask_guidance": 1.5})
    states = bench.states(["a photo of cat"])
    found = saliency(bench, latents, states, parameters, options)
    g, total = torch.Generator().manual_seed(4), 0.0
    for part in (latents[:2], latents[2:]):
        noise = torch.randn(part.shape, generator=g)
        t = torch.randint(0, 1000, (len(part),), generator=g)
        x = tiny.scheduler.add_noise(part, noise, t)
        named = tiny.unet(x, t, states.expand(len(part), -1, -1)).sample
        empty = tiny.unet(x, t, bench.states([""] * len(part))).sample
        total = total + (2.5 * named - 1.5 * empty - noise).square().mean()
    total.backward()
    for name, p in parameters.items():
        expected = torch.zeros_like(p) if p.grad is None else p.grad.abs()
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-6)


def test_the_mask_is_the_top_half_over_all_tensors():
    g = torch.Generator().manual_seed(0)
    values = {"a": torch.rand(5, 7, generator=g), "b": 3 * torch.rand(21, generator=g)}
    masks = salient(values, 0.5)
    ranked = sorted(torch.cat([v.flatten() for v in values.values()]).tolist())[28:]
    assert sum(int(m.sum()) for m in masks.values()) == 28
    assert {x for n, v in values.items() for x in v[masks[n]].tolist()} == set(ranked)
    assert masks["b"].float().mean() > masks["a"].float().mean()
    assert all(bool(m.all()) for m in salient(values, 1.0).values())
    ties = salient({"a": torch.tensor([0.0, 0.0, 0.0, 1.0])}, 0.5)
    assert ties["a"].tolist() == [False, False, False, True]


def test_what_is_masked_does_not_move(tiny):
    from erase_sd.training.loop import train

    _, lesson = lesson_of(tiny, "salun", batch=2, images=2, draw_steps=2, steps=2, lr=1e-2)
    before = {n: p.detach().clone() for n, p in lesson.parameters.items()}
    train(lesson, METHODS["salun"].make_options({"steps": 2, "lr": 1e-2}))
    moved = 0
    for name, p in lesson.parameters.items():
        still = ~lesson.masks[name]
        assert torch.equal(p[still], before[name][still]), name
        moved += int((p != before[name]).sum())
    assert moved


def test_other_weights_are_put_in_place_for_one_prediction(tiny):
    bench = Bench(tiny, TASK)
    x, states = torch.randn(1, 4, 8, 8), bench.states(["cat"])
    zero = {n: torch.zeros_like(p) for n, p in tiny.unet.named_parameters()}
    t = torch.tensor(3)
    assert not bench.predict(x, t, states, zero).any()
    with torch.no_grad():
        assert torch.equal(bench.predict(x, t, states), tiny.unet(x, t, states).sample)
        same = functional_call(tiny.unet, zero, (x, t, states)).sample
    assert not same.any()


def test_every_method_is_registered_with_its_options():
    assert tuple(METHODS) == TRAINERS
    with pytest.raises(ValueError, match="salun has no option 'eta'; it has steps, lr, batch"):
        METHODS["salun"].make_options({"eta": 1})
    with pytest.raises(ValueError, match="expected batch of at least 1, got 0"):
        METHODS["fmn"].make_options({"batch": "0"})
    with pytest.raises(ValueError, match="at least one --retain"):
        METHODS["salun"].function(Bench(_pipe(), Task(("cat",))), None)


def _pipe():
    from types import SimpleNamespace

    from diffusers import DDIMScheduler

    return SimpleNamespace(scheduler=DDIMScheduler())
