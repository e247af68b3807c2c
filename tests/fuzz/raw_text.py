"""Words that no sentence of ours holds: those of tracebacks, allocators, and of libraries that were not asked in
time.
"""

import re

RAW = [
    r"Traceback",
    r'File ".*", line \d+',
    r"<[\w.]+ object at 0x",  # io.BytesIO and the like
    r"NoneType",
    r"\bindex out of (range|bounds)",
    r"\bunpack\b",
    r"tile cannot extend",
    r"cannot identify image file",
    r"DefaultCPUAllocator|not enough memory|out of memory|Unable to allocate|bad allocation",
    r"maximum recursion depth",
    r"\b(size mismatch|must match the size|Expected \d+D|sizes of tensors|shape '\[|invalid for input of size)",
    r"\bnot implemented for '",
    r"\bobject (has no attribute|is not|does not support)\b",
    r"unsupported operand|unhashable|unexpected keyword|positional argument",
    r"codec can't (en|de)code",
    r"invalid literal|could not convert",
    r"\[Errno",
    r"\b(Runtime|Type|Key|Index|Attribute|Value|Overflow|ZeroDivision|Assertion|Memory|Recursion)Error\b",
    r"SafetensorError|HeaderTooLarge|InvalidHeader|MetadataIncompleteBuffer|Error while deserializing",
    r"decompress|zlib|Error -\d",
    r"aten::|torch\.|CPUBackend|at::|c10::",
    r"requires a buffer of|struct\b",
    r"math domain|result too large|int too large|Exceeds the limit",
]
LONGEST = 4000  # characters of a sentence; a list of layers' names is long


def raw_words(message: str) -> list[str]:
    """What of a message is no sentence of ours; empty for a good one."""
    found = [match.group(0) for pattern in RAW if (match := re.search(pattern, message))]
    if not re.search(r"\w{2,}.*\s.*\w{2,}", message):
        found.append("no sentence")
    if len(message) > LONGEST:
        found.append(f"{len(message)} characters")
    return found
