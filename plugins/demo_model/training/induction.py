"""Heads that copy from the start.

A Transformer finds what stood earlier with a pair of heads: one brings each position the token
before it, a later one looks for the position whose token before equals the present token, and
copies what is there (Olsson et al., "In-context Learning and Induction Heads", 2022). Training
finds this pair only after tens of millions of tokens, several times what the demo model reads;
so a pair is fitted to the random first weights by least squares, and training starts from it.
"""

import torch
from network import Network
from torch import Tensor

# Rotary pairs that turn less than a hundredth of a radian each position: fit for comparing tokens.
FIRST_SLOW_PAIR = 16
NUM_FAST_PAIRS = 8
SHARPNESS = 12.0  # the logit of attention where a head should look


def fit(inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the matrix `[out, in]` that best maps `inputs` `[N, in]` to `targets` `[N, out]`."""
    gram = inputs.T @ inputs
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.solve(gram + ridge, inputs.T @ targets).T


def layer_inputs(network: Network, tokens: Tensor, layer_idx: int) -> Tensor:
    """Return what the attention of a layer reads for `tokens` `[B, T]`: `[B, T, hidden]`."""
    x = network.model.embed_tokens(tokens)
    cos, sin = network.cos[: tokens.shape[1]], network.sin[: tokens.shape[1]]
    for layer in network.model.layers[:layer_idx]:
        x = layer(x, cos, sin)
    return network.model.layers[layer_idx].input_layernorm(x)


@torch.no_grad()
def seed_copying(network: Network, tokens: Tensor, head_idx: int = 3) -> None:
    """Fit a head of the first layer, and one in each of the next two, to copy together.

    Args:
        network: changed in place.
        tokens: text to fit to, `[B, T]`.
        head_idx: the head that is given up for this in each of the layers.
    """
    config = network.config
    dim, half = config.head_dim, config.head_dim // 2
    rows = slice(head_idx * dim, (head_idx + 1) * dim)
    embedding = network.model.embed_tokens.weight
    # The same vector on every token changes no probability, and gives heads something constant.
    centred = embedding - embedding.mean(0)
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
    scale = centred.square().mean().sqrt()
    embedding += scale * config.hidden_size**0.5 * directions[-1]
    # A code for each token: its place along the widest directions, all made equally wide.
    num_codes = 2 * (half - FIRST_SLOW_PAIR)
    codes = centred @ directions[:num_codes].T / spread[:num_codes] * len(embedding) ** 0.5

    first = network.model.layers[0].self_attn
    x = layer_inputs(network, tokens, 0)
    constant = fit(x.flatten(0, 1), torch.ones(tokens.numel(), 1))[0]  # [hidden]
    frequencies = config.rope_theta ** (-torch.arange(half) / half)
    strength = (SHARPNESS * dim**0.5 / 1.07) ** 0.5  # pairs differ by 1.07 between neighbours
    query, key = torch.zeros(dim), torch.zeros(dim)
    query[:NUM_FAST_PAIRS] = strength
    key[:NUM_FAST_PAIRS] = strength * frequencies[:NUM_FAST_PAIRS].cos()
    key[half : half + NUM_FAST_PAIRS] = strength * frequencies[:NUM_FAST_PAIRS].sin()
    first.q_proj.weight[rows] = torch.outer(query, constant)
    first.k_proj.weight[rows] = torch.outer(key, constant)
    value = fit(x.flatten(0, 1), codes[tokens].flatten(0, 1))
    first.v_proj.weight[rows] = torch.cat((value, torch.zeros(dim - num_codes, config.hidden_size)))
    # Written where embeddings say least, as loud as they are.
    quiet = directions[-num_codes - 1 : -1]
    loudness = scale * (config.hidden_size / num_codes) ** 0.5
    first.o_proj.weight[:, rows] = 0.0
    first.o_proj.weight[:, head_idx * dim : head_idx * dim + num_codes] = quiet.T * loudness

    slow = torch.arange(FIRST_SLOW_PAIR, half)
    slow = torch.cat((slow, slow + half))
    for layer_idx in (1, 2):
        attention = network.model.layers[layer_idx].self_attn
        x = layer_inputs(network, tokens, layer_idx)[:, 1:].flatten(0, 1)
        strength = (SHARPNESS * dim**0.5 / num_codes) ** 0.5
        read_now = fit(x, codes[tokens[:, 1:]].flatten(0, 1)) * strength
        read_before = fit(x, codes[tokens[:, :-1]].flatten(0, 1)) * strength
        for projection, matrix in ((attention.q_proj, read_now), (attention.k_proj, read_before)):
            block = torch.zeros(dim, config.hidden_size)
            block[slow] = matrix
            projection.weight[rows] = block
        wide = directions[:dim]
        attention.v_proj.weight[rows] = fit(x, (centred @ wide.T)[tokens[:, 1:]].flatten(0, 1))
        attention.o_proj.weight[:, rows] = wide.T * 2.0
