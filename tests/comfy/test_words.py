"""Unknown words of prompts with weights, brackets and embeddings: core's own tokens of the prompt in known words."""

import json
import os
import subprocess
import sys

COMPARE = r"""
import importlib, json, random, sys
comfyui, custom_nodes, embeddings = sys.argv[1:4]
sys.path[:0] = [comfyui, custom_nodes]
import comfy.cli_args
comfy.cli_args.args.cpu = True
import comfy.sd
import torch
from comfy import sd1_clip
from safetensors.torch import save_file
load = importlib.import_module("text2layer.nodes.load")
words = importlib.import_module("text2layer.nodes.words")
clip = load.LoadCheckpoint.execute("text2layer-demo.safetensors").args[1]
ours, core = clip.tokenizer, sd1_clip.SD1Tokenizer(embedding_directory=embeddings)
ours.clip_l.embedding_directory = embeddings
save_file({"emb_params": torch.randn(2, 768)}, embeddings + "/mine.safetensors")

def plain(tokens):
    return [[[t if isinstance(t, int) else "file", *rest] for t, *rest in row] for row in tokens["l"]]

def same(prompt, expected, *args, **options):
    return plain(ours.tokenize_with_weights(prompt, *args, **options)) == plain(
        core.tokenize_with_weights(expected, *args, **options)
    )

TABLE = json.loads(sys.stdin.read())
failed = [row for row in TABLE for ids in (False, True) if not same(row[0], row[1], ids)]
failed += [row for row in TABLE[:4] if not same(row[0], row[1], return_word_ids=True, tokenizer_options={})]
if not same("a (poodle:1.3) in a cathedral", "a dog in a town square", True, disable_weights=True):
    failed.append("disable_weights")

signs = ["(", ")", "((", ":1.3)", ":0.5)", ":x)", "\\(", "\\)", " ", ", ", "\n"]
pieces = ["a dog", "zorbl", "poodle", "embedding:mine", *signs]
draw = random.Random(0)
for _ in range(400):
    text = "".join(draw.choice(pieces) for _ in range(draw.randrange(12)))
    parts = words.weighted_parts(text)
    again = words.weighted_parts(words.join_parts(parts))
    if again != [part for part in parts if part[0].strip()]:
        failed.append([text, parts, again])
    tokens = [token for row in ours.tokenize_with_weights(text)["l"] for token in row]
    weights = {weight for _, weight in parts} | {1.0}
    if not {weight for _, weight in tokens} <= weights:
        failed.append([text, "weights"])
    unknown = [t for t, _ in tokens if isinstance(t, int) and t not in ours.vocabulary._token_ids]
    if "poodle" in text and unknown:
        failed.append([text, unknown])
print(json.dumps(failed))
"""

ROWS = [  # a prompt, and one that core's tokenizer reads as ours reads it
    ("a (poodle:1.3) in a cathedral", "(a:1.0)(dog:1.3)(in a town square:1.0)"),
    ("((poodle)), \\(zorbl\\)", "(a dog:1.2100000000000002)"),
    ("a photo of a poodle embedding:mine in the snow", "a photo of a dog embedding:mine in the snow"),
    ("(embedding:mine:1.2) blurry, zorbl", "(embedding:mine:1.2)"),
    ("a (golden:0.5) (retriever:1.5)", "(a:1.0)(dog:1.5)"),
    ("a poodle\nBREAK\na cathedral", "a dog\n\nin a town square"),
    ("(worst quality, low quality:1.4), blurry, watermark, embedding:mine", "embedding:mine"),
    ("(worst quality, low quality:1.4), blurry, (bad anatomy)", ""),
    ("a (cat:1.2), in the ((snow)), [a fox]!", "a (cat:1.2), in the ((snow)), [a fox]!"),
    ("[A dog] \\(in a forest\\)!", "[A dog] \\(in a forest\\)!"),
    ("", ""),
    ("embedding:mine", "embedding:mine"),
]


def test_core_reads_unknown_words_as_known_ones_with_weights_and_embeddings_kept(comfyui, base, tmp_path):
    command = [sys.executable, "-c", COMPARE, str(comfyui), str(base / "custom_nodes"), str(tmp_path)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    result = subprocess.run(command, input=json.dumps(ROWS), capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == []
