"""What an artist sees while a prompt runs: progress, previews of the composite, and Cancel."""

import asyncio
import io
import json
import urllib.parse
from pathlib import Path

import aiohttp
import numpy as np
from PIL import Image

TWIN = json.loads((Path(__file__).parent / "workflows" / "text-to-layers.json").read_text())
COMPOSITE = 3  # the output of Decode Layers
PREVIEW_IMAGE = 1  # the kind of a binary message, its first four bytes


async def watch(url, prompt, on_step=None):
    """Queue a prompt as the frontend does; every message until its end, and the previews."""
    said, previews = [], []
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{url.replace('http', 'ws')}/ws?clientId=test", max_msg_size=0) as socket:
            await session.post(f"{url}/prompt", json={"prompt": prompt, "client_id": "test"})
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    if int.from_bytes(message.data[:4], "big") == PREVIEW_IMAGE:
                        previews.append(np.array(Image.open(io.BytesIO(message.data[8:]))))
                    continue
                event = json.loads(message.data)
                said.append(event)
                if event["type"] == "progress" and on_step:
                    await on_step(session)
                if event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                    return said, previews


def changed(seed, steps=25):
    """The workflow with another seed, so that nothing of it is in the server's cache."""
    prompt = json.loads(json.dumps(TWIN))
    for node in prompt.values():
        if node["class_type"] == "KSampler":
            node["inputs"] |= {"seed": seed, "steps": steps}
    return prompt


def test_every_step_reports_and_the_last_preview_looks_like_the_composite(server):
    said, previews = asyncio.run(watch(server.url, changed(501)))
    assert said[-1]["type"] == "execution_success"
    assert max(event["data"]["value"] for event in said if event["type"] == "progress") == 25
    assert len(previews) >= 5
    composite = next(number for number, node in TWIN.items() if node["inputs"].get("images", [0, 0])[1] == COMPOSITE)
    shown = [event["data"] for event in said if event["type"] == "executed" and event["data"]["node"] == composite]
    (file,) = shown[0]["output"]["images"]
    picture = Image.open(io.BytesIO(server.get(f"/view?{urllib.parse.urlencode(file)}")))
    assert distance(picture, previews[-1]) < 45  # two different pictures: about 70


def distance(picture, preview):
    """Mean difference of a picture, made as small as a preview, 0 to 255."""
    small = picture.convert("RGB").resize(preview.shape[1::-1], Image.Resampling.BOX)
    return np.abs(np.array(small, float) - preview).mean()


def test_cancel_ends_within_a_step(server):
    async def cancel(session):
        await session.post(f"{server.url}/interrupt")

    said, _ = asyncio.run(watch(server.url, changed(502, steps=500), cancel))
    assert said[-1]["type"] == "execution_interrupted"
    assert max(event["data"]["value"] for event in said if event["type"] == "progress") < 20
    assert server.run(changed(503, steps=2)).error is None
