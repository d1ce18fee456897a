"""Algorithm 1 of the G2RPO paper and its baselines, transcribed: one sample at a time, nothing shared, nothing packed.

For every arm of the schedule and every sample of the group: walk down from the initial noise, with noise at the arm's
steps and without elsewhere; finish once per granularity; score. Then normalise within the group, and add up the
clipped surrogate of every trained action with a forward of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from flowrl.noise import Noise


@dataclass
class Step:
    """One sampled transition: from x at sigma to the next state."""

    x: torch.Tensor
    next: torch.Tensor
    sigma: float
    sigma_next: float
    log_prob: float
    key: tuple


@dataclass
class Sample:
    arm: int
    steps: list[Step] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)  # [S][R]
    advantage: float = 0.0


def velocity(policy, x, sigma, cond):
    return policy.velocity(x[None], torch.tensor([sigma], dtype=x.dtype), cond)[0]


def transition(kernel, x, v, sigma, sigma_next):
    levels = (torch.tensor([s], dtype=x.dtype) for s in (sigma, sigma_next))
    return kernel.transition(x[None], v[None], *levels)


def roll_out(policy, kernel, grid, arm_index, arm, member, cond, noise, position, finish):
    """One sample: its stochastic steps and, through ``finish``, its rewards."""
    shared = arm.roots == 1
    key = ((-1, 0 if shared else member),)
    x = noise.draw(position, key, policy.latent_shape).double()
    sample = Sample(arm_index)
    last_decision = None
    first = True
    for k in range(1 + max(arm.fanout)):
        sigma, sigma_next = grid.sigma[k], grid.sigma[k + 1]
        v = velocity(policy, x, sigma, cond)
        if k not in arm.fanout:
            x = x - v * (sigma - sigma_next)
            continue
        sibling = member if first and shared else 0
        first = False
        key = (*key, (k, sibling))
        gaussian = transition(kernel, x, v, sigma, sigma_next)
        following = gaussian.sample(noise.draw(position, key, policy.latent_shape).double()[None])
        sample.steps.append(Step(x, following[0], sigma, sigma_next, float(gaussian.log_prob(following)), key))
        last_decision = (sigma, x - sigma * v)
        x = following[0]
    sample.rewards = finish(x, 1 + max(arm.fanout), last_decision)
    return sample


def denoise(policy, path, x, cond, last_decision):
    """Finish alone along one path: Euler, or DPM-Solver++(2M) written out."""
    history = last_decision if path.history == "decision" else None
    for sigma, sigma_next in zip(path.sigmas, path.sigmas[1:], strict=False):
        v = velocity(policy, x, sigma, cond)
        x0 = x - sigma * v
        if path.solver == "dpmpp_2m" and history is not None and sigma_next > 0 and history[0] < 1:
            sigma_h, x0_h = history
            lam = [math.log((1 - s) / s) for s in (sigma_h, sigma, sigma_next)]
            h, h0 = lam[2] - lam[1], lam[1] - lam[0]
            d = x0 + (x0 - x0_h) * h / (2 * h0)
            x = sigma_next / sigma * x - (1 - sigma_next) * (math.exp(-h) - 1) * d
        else:
            x = x - v * (sigma - sigma_next)
        history = (sigma, x0)
    return x


def normalise(values, ddof, eps, std=None):
    mean = sum(values) / len(values)
    if max(values) - min(values) <= 1e-6 * max(abs(v) for v in values):
        return [0.0] * len(values)
    if std is None:
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - ddof))
    return [(v - mean) / (std + eps) for v in values]


def advantages(per_prompt, config, weights):
    """Set each sample's advantage: within its prompt and arm, per granularity and reward, then summed."""
    num_arms = 1 + max(s.arm for samples in per_prompt for s in samples)
    for arm in range(num_arms):
        groups = [[s for s in samples if s.arm == arm] for samples in per_prompt]
        for members in groups:
            for s in members:
                table = s.rewards
                if config.streams == "mean_reward":
                    table = [[sum(column) / len(table) for column in zip(*table, strict=True)]]
                if config.mixing == "weighted_rewards":
                    table = [[sum(w * r for w, r in zip(weights, row, strict=True))] for row in table]
                s.table = table
        num_streams, num_rewards = len(groups[0][0].table), len(groups[0][0].table[0])
        scale = [1.0] * num_rewards
        if config.mixing != "weighted_rewards":
            scale = [w / sum(weights) if config.mixing == "weighted_advantages" else w for w in weights]
        for stream in range(num_streams):
            for r in range(num_rewards):
                everyone = [s.table[stream][r] for members in groups for s in members]
                std = None
                if config.scope == "batch":
                    mean = sum(everyone) / len(everyone)
                    std = math.sqrt(sum((v - mean) ** 2 for v in everyone) / (len(everyone) - config.ddof))
                for members in groups:
                    found = normalise([s.table[stream][r] for s in members], config.ddof, config.eps, std)
                    for s, a in zip(members, found, strict=True):
                        s.advantage += scale[r] * a
    for samples in per_prompt:
        for s in samples:
            s.advantage = s.advantage if config.clip is None else max(-config.clip, min(config.clip, s.advantage))


def iterate(policy, recipe, grid, arms, prompts, scorers, weights, seed, iteration, group):
    """All samples of an iteration with their advantages, [P][samples]."""
    noise = Noise(seed, iteration)
    per_prompt = []
    with torch.no_grad():
        for position, prompt in enumerate(prompts):
            cond = policy.encode([prompt])

            def finish(x, start, last_decision, cond=cond, prompt=prompt):
                rows = []
                for path in recipe.continuation.paths(grid, start):
                    image = policy.decode(denoise(policy, path, x, cond, last_decision)[None])
                    rows.append([float(scorer.score(image, [prompt]).values) for scorer in scorers])
                return rows

            per_prompt.append(
                [
                    roll_out(policy, recipe.kernel, grid, a, arm, member, cond, noise, position, finish)
                    for a, arm in enumerate(arms)
                    for member in range(group)
                ]
            )
    advantages(per_prompt, recipe.advantage, weights)
    return per_prompt


def gradient(policy, recipe, per_prompt, prompts, is_trained):
    """Gradient of the mean over trained actions of the clipped surrogate (with KL where the recipe has it)."""
    policy.module.zero_grad()
    chosen = [
        (prompt, sample, step)
        for position, (prompt, samples) in enumerate(zip(prompts, per_prompt, strict=True))
        for sample in samples
        for step in sample.steps
        if step.sigma_next > 0 and is_trained(position, step.key)
    ]
    loss_config = recipe.loss
    for prompt, sample, step in chosen:
        cond = policy.encode([prompt])
        with torch.no_grad(), policy.reference():
            v_ref = velocity(policy, step.x, step.sigma, cond)
        new = transition(recipe.kernel, step.x, velocity(policy, step.x, step.sigma, cond), step.sigma, step.sigma_next)
        ratio = (new.log_prob(step.next[None]) - step.log_prob).exp()
        clipped = ratio.clamp(1 - loss_config.clip, 1 + loss_config.clip)
        loss = torch.max(-sample.advantage * ratio, -sample.advantage * clipped)
        if loss_config.beta > 0:
            ref = transition(recipe.kernel, step.x, v_ref, step.sigma, step.sigma_next)
            variance = new.std.flatten() ** 2
            if loss_config.kl_denominator == "diffusion":
                variance = variance / (step.sigma - step.sigma_next)
            loss = loss + loss_config.beta * ((new.mean - ref.mean) ** 2).mean() / (2 * variance)
        (loss.sum() / len(chosen)).backward()
    return [parameter.grad.clone() for parameter in policy.module.parameters()]
