"""The same tiny models in PyTorch, as the reference of the parity tests."""

import numpy as np


def save_reference(attributes, directory):
    """A random `transformers` model of these attributes, saved under `directory`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**attributes), attn_implementation="eager"
    ).float()
    for parameter in model.parameters():
        # Norm weights near what they are at the start, matrices large enough to matter.
        with torch.no_grad():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return model.eval()


def load_reference(directory, dtype):
    """The model that `save_reference` saved, in another type."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager"
    ).eval()


def run_reference(model, tokens, mask, keep=0):
    """Logits (of the positions `keep`, 0: all) and every layer's output, as numpy arrays."""
    import torch

    outputs = []
    hooks = [
        layer.register_forward_hook(
            lambda module, inputs, output: outputs.append(
                (output[0] if isinstance(output, tuple) else output).float().numpy()
            )
        )
        for layer in _blocks(model)
    ]
    result = _run(
        model, tokens, mask, logits_to_keep=keep if isinstance(keep, int) else torch.tensor(keep)
    )
    for hook in hooks:
        hook.remove()
    return result.logits.float().numpy(), outputs


def run_cached(model, tokens, mask, prefill):
    """Logits from the last of `prefill` positions on, each after it by one step from the cache."""
    import torch

    tokens, mask = (torch.tensor(np.asarray(a, np.int64)) for a in (tokens, mask))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    read, cache = [], None
    for start, stop in [(0, prefill), *((i, i + 1) for i in range(prefill, tokens.shape[1]))]:
        with torch.no_grad():
            out = model(
                tokens[:, start:stop],
                attention_mask=mask[:, :stop],
                position_ids=positions[:, start:stop],
                cache=cache,
                use_cache=True,
            )
        cache = out.cache
        read.append(out.logits[:, -1].numpy())
    return np.stack(read, axis=1)


def run_sites(model, tokens, mask):
    """What a model built of Llama's or Gemma's blocks has at a site: (layer, site) -> array."""
    found = {}

    def keep(layer, site, module, of_input=False):
        def hook(module, inputs, output):
            value = inputs if of_input else output
            found[layer, site] = (value[0] if isinstance(value, tuple) else value).numpy().copy()

        return module.register_forward_hook(hook)

    hooks = []
    for i, block in enumerate(_blocks(model)):
        attention, mlp = block.self_attn, block.mlp
        hooks.append(keep(i, "z", attention.o_proj, of_input=True))
        hooks.append(keep(i, "mlp_hidden", mlp.down_proj, of_input=True))
        if hasattr(block, "post_feedforward_layernorm"):  # what these two give is added
            attention, mlp = block.post_attention_layernorm, block.post_feedforward_layernorm
        hooks += [keep(i, "attn_out", attention), keep(i, "mlp_out", mlp)]
    _run(model, tokens, mask)
    for hook in hooks:
        hook.remove()
    return found


def _run(model, tokens, mask, **how):
    import torch

    with torch.no_grad():
        return model(
            torch.tensor(np.asarray(tokens, np.int64)),
            attention_mask=torch.tensor(np.asarray(mask, np.int64)),
            position_ids=torch.tensor(np.maximum(np.cumsum(mask, axis=1) - 1, 0)),
            use_cache=False,
            **how,
        )


def _blocks(model):
    body = getattr(model.base_model, "language_model", model.base_model)
    return body.h if hasattr(body, "h") else body.layers
