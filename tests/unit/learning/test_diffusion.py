"""The diffusion prior against hand-computed numbers."""

import pytest
import torch

from mimickit.learning.diffusion import (
    AveragedNet,
    ChannelNormalizer,
    Diffusion,
    DiT,
    MotionPrior,
    PriorConfig,
    load_prior_config,
    noise_schedule,
    position_table,
    time_features,
)
from mimickit.util.checkpoint import save_model
from mimickit.util.failures import UserError

KEYS = {"T": 50, "loss_type": "l1", "estimate_mode": "epsilon", "noise_schedule_mode": "squaredcos_cap_v2",
        "num_layers": 2, "num_iterations": 10, "env_config": "env.yaml", "motion_file": "clip.pkl", "control_freq": 30}


def prior_config(**changes):
    return PriorConfig(**{**KEYS, **changes})


def tiny(**changes):
    torch.manual_seed(2)
    return MotionPrior(prior_config(num_attention_heads=2, attention_head_dim=8, **changes), 4, 3)


def close(found, expected, atol=2e-6):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-5, atol=atol)


X, NOISE = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 0.25]])


def test_cosine_schedule():
    alpha_bar = noise_schedule("squaredcos_cap_v2", 50)
    close(alpha_bar[[0, 8, 15, 22]], [0.9982525, 0.9167411, 0.7608359, 0.5560687])
    assert alpha_bar[49].item() == pytest.approx(9.7118e-7, rel=1e-4)
    assert 1.0 - alpha_bar[0].item() == pytest.approx(0.00174751, rel=1e-5)
    assert 1.0 - (alpha_bar[49] / alpha_bar[48]).item() == pytest.approx(0.999)


def test_linear_schedules():
    assert noise_schedule("linear", 2).tolist() == pytest.approx([0.9999, 0.9999 * 0.98])
    assert noise_schedule("scaled_linear", 2).tolist() == pytest.approx([0.9999, 0.9999 * 0.98])
    middle = 1.0 - noise_schedule("scaled_linear", 3)[1].item() / 0.9999
    assert middle == pytest.approx(((0.01 + 0.02**0.5) / 2) ** 2)


@pytest.mark.parametrize(("t", "expected"), [
    (8, [1.101739, -1.842795]), (15, [1.116781, -1.622257]), (22, [1.078841, -1.324830])])
def test_noising(t, expected):
    diffusion = Diffusion("squaredcos_cap_v2", 50, "epsilon")
    close(diffusion.add_noise(X, NOISE, torch.tensor([t])), [expected])


@pytest.mark.parametrize("estimate", ["epsilon", "sample", "v_prediction"])
def test_what_the_network_says_is_turned_back(estimate):
    diffusion, t = Diffusion("squaredcos_cap_v2", 50, estimate), torch.tensor([22])
    noisy = diffusion.add_noise(X, NOISE, t)
    clean, noise = diffusion.clean_and_noise(noisy, diffusion.target(X, NOISE, t), t)
    close(clean, X.tolist(), atol=1e-5)
    close(noise, NOISE.tolist(), atol=1e-5)


def test_steps_back():
    diffusion = Diffusion("squaredcos_cap_v2", 50, "epsilon")
    t = torch.tensor([0])
    clean, _ = diffusion.clean_and_noise(X, NOISE, t)
    close(diffusion.ddpm_step(X, clean, t, torch.ones_like(X)), [[0.979955, -2.012210]])
    assert diffusion.deviation[22].square().item() == pytest.approx(0.0489053, rel=1e-5)
    for t, stride, expected, expected_clean in [
        (22, 1, [1.006464, -2.065173], [0.894273, -2.905418]), (20, 5, [1.011294, -2.269548], [0.879064, -2.742086])
    ]:
        at = torch.tensor([t])
        clean, noise = diffusion.clean_and_noise(X, NOISE, at)
        close(clean, [expected_clean])
        close(diffusion.ddim_step(clean, noise, at, stride), [expected])
    assert diffusion.ddim_steps(10) == ([45, 40, 35, 30, 25, 20, 15, 10, 5, 0], 5)


def test_the_ddpm_step_has_the_mean_of_the_posterior():
    """Bayes by quadrature: where x_21 came from, given x_22 and the clean value."""
    diffusion, (clean, noisy) = Diffusion("squaredcos_cap_v2", 50, "epsilon"), (0.4, 1.3)
    before, now = diffusion.alpha_bar[21].double(), diffusion.alpha_bar[22].double()
    x = torch.linspace(-12.0, 12.0, 200001, dtype=torch.float64)
    alpha = now / before
    log_density = -(x - before.sqrt() * clean).square() / (2 * (1 - before)) - (
        noisy - alpha.sqrt() * x).square() / (2 * (1 - alpha))
    weight = log_density.softmax(0)
    mean = (weight * x).sum()
    found = diffusion.ddpm_step(torch.tensor([[noisy]]), torch.tensor([[clean]]), torch.tensor([22]), torch.zeros(1, 1))
    assert found.item() == pytest.approx(mean.item(), rel=1e-5)
    deviation = (weight * (x - mean).square()).sum().sqrt().item()
    assert diffusion.deviation[22].item() == pytest.approx(deviation, rel=1e-5)


def test_features_of_time_and_position():
    found = time_features(torch.tensor([3]))[0]
    close(found[[0, 1, 128, 129]], [-0.9899925, -0.9394150, 0.1411200, 0.3427818])
    close(position_table(256)[1, :4], [0.8414710, 0.5403023, 0.8019618, 0.5973753])


def test_average():
    model = torch.nn.Linear(1, 1, bias=False)
    average = AveragedNet(model, decay=0.5, steps=2, update_after=4)
    found = []
    for call in range(10):
        with torch.no_grad():
            model.weight.fill_(call + 1)
        average.update(call)
        found.append(average.ema_model.weight.item())
    assert found == [1, 1, 3, 3, 5, 5, 6, 6, 7.5, 7.5]
    assert average.step.item() == 10


def keys_in_order(blocks):
    yield "scale_shift_table"
    for block in range(blocks):
        yield from (f"transformer_blocks.{block}.{name}" for name in (
            "scale_shift_table", "attn1.to_q.weight", "attn1.to_k.weight", "attn1.to_v.weight",
            "attn1.to_out.0.weight", "attn1.to_out.0.bias", "ff.net.0.proj.weight", "ff.net.0.proj.bias",
            "ff.net.2.weight", "ff.net.2.bias"))
    for name in ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear"):
        yield from (f"adaln_single.{name}.weight", f"adaln_single.{name}.bias")
    yield from ("preprocess_conv.weight", "proj_in.weight", "proj_out.weight", "postprocess_conv.weight")


def test_network():
    net = DiT(10, 4, prior_config())
    state, start = net.state_dict(), 0
    assert set(state) == {*keys_in_order(2), "sequence_pos_encoder.pe"}
    assert state["scale_shift_table"].shape == (1, 1, 2, 256)
    assert state["transformer_blocks.1.scale_shift_table"].shape == (1, 1, 6, 256)
    assert state["preprocess_conv.weight"].shape == (4, 4, 1)
    assert state["sequence_pos_encoder.pe"].shape == (1, 32, 256)
    for key in keys_in_order(2):
        index = torch.arange(start, start + state[key].numel(), dtype=torch.float64)
        state[key].copy_((0.05 * torch.sin(0.1 * index)).view(state[key].shape))
        start += len(index)
    assert start == 2_634_272
    x = torch.cos(torch.arange(80.0)).view(2, 40)
    with torch.no_grad():
        y = net(x, torch.tensor([3, 22]))
    close(y[0, :4], [0.108631, 0.098539, 0.066938, 0.020306], atol=1e-3)
    close(y[1, -4:], [0.691597, 0.843194, 0.809838, 0.595778], atol=1e-3)
    assert y.sum().item() == pytest.approx(18.66880, abs=1e-3)
    assert y.abs().sum().item() == pytest.approx(28.55467, abs=1e-3)


def test_normalizer_of_channels():
    normalizer = ChannelNormalizer(2)
    normalizer.fill(torch.tensor([[0.0, 0.0], [0.1, 1.0]]), min_std=0.2)
    close(normalizer._mean, [0.05, 0.5])
    close(normalizer._std, [0.2, 0.5])
    window = torch.tensor([[0.05, 1.0, 0.25, 0.5]])  # two frames
    close(normalizer.normalize(window), [[0.0, 1.0, 1.0, 0.0]])
    close(normalizer.denormalize(normalizer.normalize(window)), window.tolist())


@pytest.mark.parametrize("ema", [True, False])
def test_a_prior_file_has_the_known_names_and_loads(tmp_path, ema):
    prior = tiny(model_ema=ema)
    names = set(prior.state_dict())
    prefixes = {"dmodel", "ema_dmodel.model", "ema_dmodel.ema_model"} if ema else {"dmodel"}
    expected = {f"{prefix}.{key}" for prefix in prefixes for key in (*keys_in_order(2), "sequence_pos_encoder.pe")}
    expected |= {f"obs_normalizer.{name}" for name in ("_count", "_mean", "_std")}
    assert names == expected | ({"ema_dmodel.step"} if ema else set())
    save_model(tmp_path / "model.pt", prior.state_dict())
    other = MotionPrior(prior_config(num_attention_heads=2, attention_head_dim=8, model_ema=ema), 4, 3)
    x, t = torch.randn(2, 12), torch.tensor([3, 22])
    assert not torch.equal(prior.net(x, t), other.net(x, t))
    other.load(tmp_path / "model.pt")
    assert torch.equal(prior.net(x, t), other.net(x, t))
    with pytest.raises(UserError, match=r"model\.pt"):
        MotionPrior(prior_config(model_ema=ema), 4, 3).load(tmp_path / "model.pt")


class PerfectNet(torch.nn.Module):
    """Knows that all windows are one: the noise is what is left."""

    def __init__(self, prior, window):
        super().__init__()
        self._alpha_bar, self._window = prior.diffusion.alpha_bar, window

    def forward(self, x, t):
        alpha_bar = self._alpha_bar[t].unsqueeze(-1)
        return (x - alpha_bar.sqrt() * self._window) / (1.0 - alpha_bar).sqrt()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_sampling_with_a_perfect_network_ends_at_the_data(sampler):
    prior, window = tiny(), torch.linspace(-1.0, 1.0, 12)
    prior.dmodel = PerfectNet(prior, window)
    close(prior.sample(5, sampler), window.expand(5, -1).tolist(), atol=1e-4)


def test_errors_tell_data_from_what_is_not():
    prior, window = tiny(), torch.linspace(-1.0, 1.0, 12)
    prior.dmodel = PerfectNet(prior, window)
    steps = torch.tensor([22, 15, 8])
    errors = prior.denoising_errors(torch.stack([window, window + 0.1]), steps)
    # off by d everywhere, the noise is missed by d sqrt(alpha-bar / (1 - alpha-bar))
    ratio = prior.diffusion.alpha_bar[steps]
    close(errors, [[0.0] * 3, (0.01 * ratio / (1.0 - ratio)).tolist()], atol=1e-5)


def test_a_prior_with_an_average_scores_and_samples_with_it():
    prior, x = tiny(model_ema=True), torch.randn(2, 12)
    torch.manual_seed(0)
    errors, samples = prior.denoising_errors(x, torch.tensor([22])), prior.sample(3, "ddim")
    with torch.no_grad():
        for parameter in prior.dmodel.parameters():
            parameter.zero_()
    torch.manual_seed(0)
    assert torch.equal(prior.denoising_errors(x, torch.tensor([22])), errors)
    assert torch.equal(prior.sample(3, "ddim"), samples)


def test_more_frames_than_positions():
    with pytest.raises(UserError, match="at most 32 frames; num_disc_obs_steps is 33"):
        DiT(33, 3, prior_config())


def test_files_of_mimickit(tmp_path):
    file = tmp_path / "tinymdm.yaml"
    lines = [f"{key}: {value}" for key, value in KEYS.items()]
    file.write_text("\n".join([*lines, "model_name: tiny_mdm", "arch_name: CondDiT", "num_class: 0", "device: cuda",
                               "master_port: '11435'", "lr: 1e-4", "model_ema: True"]))
    config = load_prior_config(file)
    assert (config.lr, config.arch_name, config.num_attention_heads * config.attention_head_dim) == (1e-4, "DiT", 256)
    file.write_text(file.read_text() + "\ncfg_dropout: 0.1\n")
    with pytest.raises(UserError, match="several classes are not supported"):
        load_prior_config(file)
    file.write_text(file.read_text().replace("cfg_dropout: 0.1", "num_iteration: 3"))
    with pytest.raises(UserError, match=r"unknown key .num_iteration. .did you mean .num_iterations."):
        load_prior_config(file)
