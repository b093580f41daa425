"""Text that can be written as UTF-8: what every message, prompt and file must be."""

from __future__ import annotations

from loci.errors import ParameterError

_ESCAPED = range(0xDC80, 0xDD00)  # how Python carries bytes that it could not decode


def plain_text(value: object, what: str) -> str:
    """Return text that can be written as UTF-8; bytes are decoded.

    Raises:
        ParameterError: naming the position, if the bytes are no UTF-8 or the text has half a
            surrogate pair.
    """
    if isinstance(value, (bytes, bytearray)):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError as problem:
            raise ParameterError(
                f"{what} is not UTF-8 at byte {problem.start}",
                value=bytes(value[problem.start : problem.start + 4]),
                allowed="text, or bytes in UTF-8",
                way_out='decode it first: data.decode("latin-1"), or iconv -f latin1 -t utf-8 FILE',
            ) from None
    if not isinstance(value, str):
        raise ParameterError(f"{what} must be text", value=value)
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as problem:
            code = ord(value[problem.start])
            if code in _ESCAPED:
                raise ParameterError(
                    f"{what} is not UTF-8 at character {problem.start}",
                    value=bytes((code - 0xDC00,)),
                    allowed="text in UTF-8",
                ) from None
            raise ParameterError(
                f"{what} has half a surrogate pair at character {problem.start}",
                value=value[problem.start],
                allowed="text that can be written as UTF-8",
            ) from None
    return value
