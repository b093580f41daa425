"""`loci show`: one model as arithmetic."""

from __future__ import annotations

import click

from loci import config
from loci.cli.output import as_json_option, emit, progress, say
from loci.units import format_bytes


@click.command()
@click.argument("model")
@as_json_option
def command(model: str, as_json: bool) -> None:
    """Show the sizes of a model: its shape, its bytes, what a token of KV cache takes."""
    from loci.models.load import spec_of

    with progress() as report:
        spec, blocks, total = spec_of(model, config.load().models_dir, progress=report)
    if as_json:
        emit(
            {
                "spec": spec.to_json(),
                "parameters": spec.elements(),
                "bytes": total,
                "full_bytes": spec.full_bytes(),
                "kv_bytes_per_token": spec.kv_bytes(1),
                "blocks": [
                    {"name": name, "bytes": nbytes, "stored_bytes": stored}
                    for name, nbytes, stored in blocks
                ],
            }
        )
        return
    bits = 8 * total / spec.elements()
    rows = {
        "model": f"{spec.name}, {spec.architecture}, {spec.elements() / 1e6:.1f} M parameters",
        "shape": f"{spec.layers} layers, hidden {spec.hidden}, {spec.heads} query and "
        f"{spec.kv_heads} KV heads of {spec.head_dim}, ffn {spec.ffn}, vocabulary {spec.vocab:,}",
        "context": f"at most {spec.max_context:,} tokens",
        "weights": f"{format_bytes(total)} in {len(blocks)} blocks, {bits:.1f} bits a parameter "
        f"(full: {format_bytes(spec.full_bytes())})",
        "kv": f"{format_bytes(spec.kv_bytes(1))} a token at 2 bytes an element; "
        f"{format_bytes(spec.kv_bytes(spec.max_context))} for the longest context",
        "made from": spec.fingerprint,
    }
    for name, text in rows.items():
        say(f"{name:<10}{text}")
