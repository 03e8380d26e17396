"""Attacks: each does what its name says, and leaves the model as it was."""

import numpy as np
import pytest
import torch
from PIL import Image

from erase_sd._lazy import resolve
from erase_sd.emoji.judge import judge
from erase_sd.emoji.render import render
from erase_sd.emoji.scenes import Scene
from erase_sd.emoji.world import available_objects, load_world
from erase_sd.eval.attacks import ATTACKS, attacked, parse
from erase_sd.eval.attacks.fine_tuning import fine_tuning
from erase_sd.eval.attacks.prompt import prompt_attack
from erase_sd.eval.attacks.ring_a_bell import concept_prompts
from erase_sd.eval.attacks.target import Target, own_pictures
from erase_sd.eval.attacks.tokens import Search, on_simplex, token_attack
from erase_sd.pipelines.denoising import denoising_loss, latents_of
from erase_sd.pipelines.live import LiveErasure
from erase_sd.text.encoder import TextEncoder


@pytest.fixture(scope="module")
def cats():
    """An attacker's pictures."""
    cat = load_world().names.index("cat")
    artists = [a for a in range(5) if cat in available_objects()[a]]
    scenes = [Scene((cat,), artists[i % len(artists)], "white", ("",), i) for i in range(8)]
    return [Image.fromarray(render(s)) for s in scenes]


def loss_of(pipe, images, states):
    """The denoising loss of text states on pictures, over noise that no attack has seen."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(12_345)
        latents = latents_of(pipe, images)
        return float(denoising_loss(pipe, latents, states.expand(32, -1, -1), generator))


def found(pipe, states, name, count=4):
    empty = pipe.encode_prompt("", pipe.device, 1, False)[0]
    noise = [torch.Generator().manual_seed(i) for i in range(count)]
    images = pipe(
        prompt_embeds=states.expand(count, -1, -1),
        negative_prompt_embeds=empty.expand(count, -1, -1),
        generator=noise,
        num_inference_steps=6,
        guidance_scale=3.0,
    ).images
    return judge(images).top.count(name)


def test_a_prompt_attack_finds_the_concept_again(pipe, cats):
    """Some steps lower the loss on unseen noise, and cats are drawn; random tokens draw none."""
    before = {n: p.detach().clone() for n, p in pipe.unet.named_parameters()}
    first = prompt_attack(pipe, cats, iterations=0, batch=4)
    states = prompt_attack(pipe, cats, iterations=25, batch=4)
    assert states.shape == (1, 77, pipe.text_encoder.config.hidden_size)
    assert torch.equal(states[:, 0], first[:, 0])  # BOS comes before the free tokens
    assert loss_of(pipe, cats, states) < 0.95 * loss_of(pipe, cats, first)
    assert found(pipe, first, "cat") <= 1
    assert found(pipe, states, "cat") >= 3
    parameters = pipe.unet.named_parameters()
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in parameters)


def test_a_prompt_attack_is_seeded_and_knows_its_prefix(pipe, cats):
    options = {"iterations": 2, "batch": 2}
    once, again = (prompt_attack(pipe, cats, **options) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, prompt_attack(pipe, cats, seed=1, **options))
    words = TextEncoder.of(pipe).encode(["a photo of a"]).states[0]
    prefixed = prompt_attack(pipe, cats, prefix="a photo of a", tokens=1, **options)
    torch.testing.assert_close(
        prefixed[0, :5], words[:5], atol=1e-5, rtol=1e-5
    )  # causal: BOS and four words
    pipe.text_encoder_2 = pipe.text_encoder
    with pytest.raises(ValueError, match="one text encoder"):
        prompt_attack(pipe, cats, **options)


def test_a_token_attack_finds_words_of_the_vocabulary(pipe, cats):
    """Its states are those of real tokens before the prompt, and they draw cats without a name."""
    first = token_attack(pipe, cats, "a photo", Search(iterations=0))
    states = token_attack(pipe, cats, "a photo", Search(iterations=25))
    assert loss_of(pipe, cats, states) < 0.95 * loss_of(pipe, cats, first)
    assert found(pipe, states, "cat") >= 3
    table = pipe.text_encoder.get_input_embeddings().weight
    tokens = []
    with torch.no_grad():  # causal: the first state says which token stands first, and so on
        for place in range(1, 6):
            ids = torch.full((len(table), place + 1), pipe.tokenizer.bos_token_id)
            ids[:, 1:place] = torch.tensor(tokens, dtype=torch.long)
            ids[:, place] = torch.arange(len(table))
            made = torch.cat(
                [pipe.text_encoder(i).last_hidden_state[:, -1] for i in ids.split(512)]
            )
            off = (made - states[0, place]).norm(dim=1)
            assert off.min() < 1e-3 * states[0, place].norm()
            tokens.append(int(off.argmin()))
    pipe.text_encoder_2 = pipe.text_encoder
    with pytest.raises(ValueError, match="one text encoder"):
        token_attack(pipe, cats, "a")


def test_the_simplex_is_met_where_it_is_nearest():
    rows = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    on = on_simplex(rows)
    torch.testing.assert_close(on.sum(1), torch.ones(6))
    assert (on >= 0).all()
    for seed in range(200):  # no other distribution is nearer
        other = torch.rand(6, 9, generator=torch.Generator().manual_seed(seed)).pow(4)
        other = other / other.sum(1, keepdim=True)
        for mixed in (other, 0.99 * on + 0.01 * other):
            assert ((mixed - rows).norm(dim=1) >= (on - rows).norm(dim=1) - 1e-6).all()


def test_fine_tuning_counts_steps_and_puts_the_weights_back(pipe, cats):
    before = {n: p.detach().clone() for n, p in pipe.unet.named_parameters()}
    moved = []

    def after_two_rounds():
        moved.append(
            max(
                float((p.detach() - before[n]).abs().max()) for n, p in pipe.unet.named_parameters()
            )
        )
        return len(moved) == 3

    assert fine_tuning(pipe, cats[:2], "a cat", after_two_rounds, every=1, batch=2) == 2
    assert moved[0] == 0 < moved[1] < moved[2]
    assert fine_tuning(pipe, cats[:2], "a cat", lambda: False, every=1, limit=1, batch=2) is None
    assert all(torch.equal(p, before[n]) for n, p in pipe.unet.named_parameters())


def test_fine_tuning_lowers_the_loss_while_it_is_on(pipe, cats):
    """On the pictures and the prompt it was told, and no more once it is over."""
    states = pipe.encode_prompt("a box", pipe.device, 1, False)[0]
    before = loss_of(pipe, cats, states)
    with attacked("fine-tuning:5", Target(pipe, "cat", "a box", cats)) as prompt:
        assert prompt == "a box"
        assert loss_of(pipe, cats, states) < before
    assert loss_of(pipe, cats, states) == before


def test_concept_prompts_find_words_that_mean_the_concept(encoder):
    """Ring-A-Bell's search gets nearer to its target than random words, and the same every time."""
    pairs = [("a photo of a cat", "a photo of a thing"), ("a cat on blue", "a thing on blue")]
    options = dict(tokens=3, population=32, generations=12)
    found = concept_prompts(encoder, pairs, "a photo of a thing", **options)
    assert found == concept_prompts(encoder, pairs, "a photo of a thing", **options)
    assert len(found.split()) == 3
    vector = (encoder.encode([pairs[0][0]]).meanings - encoder.encode([pairs[0][1]]).meanings)[0]
    target = encoder.encode(["a photo of a thing"]).meanings[0] + 3 * vector
    words = encoder.encode([found, "with from under", "table of from"]).meanings
    distance = (words - target).norm(dim=1)
    assert distance[0] < distance[1:].min()


def test_ring_a_bell_draws_with_real_words_and_a_paraphrase_with_its_own(pipe):
    target = Target(pipe, "cat", "a photo of a kitty")
    with attacked("ring-a-bell:1", target) as words:
        tokens = pipe.tokenizer(words, add_special_tokens=False).input_ids
        assert len(words.split()) == 6 and pipe.tokenizer.decode(tokens).split() == words.split()
    with attacked("paraphrase", target) as prompt:
        assert prompt == "a photo of a kitty"


@pytest.mark.parametrize("scale", [1.0, 0.8])  # overshooting, and a plain projection
def test_revival_is_the_best_that_an_embedding_can_do(pipe, cat, scale):
    """The embedding whose edited keys and values are nearest, by numpy's least squares."""
    cut = cat.scaled(scale).edit
    with attacked("revival", Target(pipe, "cat", "a cat", edit=cut)) as states:
        got = states[0].double().numpy()
    x = TextEncoder.of(pipe).encode(["a cat"]).states[0].double()
    weights = [w.double() for w in LiveErasure.of(pipe).originals().values()]
    every = torch.cat(weights)  # (all outputs, d)
    eye = torch.eye(x.shape[1], dtype=torch.float64)
    edited = (every @ cut.apply_to_features(eye).T).numpy()
    want = (every @ x.T).numpy()
    best = np.linalg.lstsq(edited, want, rcond=None)[0]

    def gap(rows):
        return np.linalg.norm(edited @ rows[1:].T - want[:, 1:], axis=0)

    plain, optimum = gap(x.numpy()), gap(best.T)
    assert (gap(got) <= 1.02 * optimum + 5e-3 * plain).all()
    assert (gap(got) < 0.5 * plain).any()
    assert np.allclose(got[0], x[0].numpy(), atol=1e-6)  # BOS is no token of anyone's
    with attacked("revival", Target(pipe, "cat", "a cat")) as prompt:
        assert prompt == "a cat"


@pytest.mark.parametrize(
    "attack,error",
    [
        ("magic", "no attack 'magic'; there are paraphrase"),
        ("prompt:many", "steps above zero behind prompt:, got 'many'"),
        ("prompt:0", "steps above zero"),
        ("revival:3", "the revival takes no steps, got 3"),
        ("paraphrase:3", "takes no steps, got 3"),
    ],
)
def test_what_is_no_attack_is_refused(pipe, cat, attack, error):
    with (
        pytest.raises(ValueError, match=error),
        attacked(attack, Target(pipe, "cat", "a cat", edit=cat.edit)),
    ):
        pass


def test_every_name_leads_to_an_attack():
    assert all(callable(resolve(where)) for where in ATTACKS.values())
    assert [parse(name) for name in ATTACKS] == [(name, None) for name in ATTACKS]


def test_an_attackers_pictures_show_the_concept(pipe):
    assert judge(own_pictures(pipe, "cat", count=4, steps=8)).top.count("cat") >= 3
