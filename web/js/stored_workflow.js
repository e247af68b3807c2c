// The workflow that Save Layers wrote into a file: read in the browser, within limits, and only as data.
const MOST_TEXT = 16 << 20; // bytes of a workflow
const MOST_INDEX = 64 << 20; // bytes of a PSD's resources, of a zip's list of entries
const MOST_NODES = 5000;
const MOST_LEVELS = 64;
const NAMESPACE = "https://www.comfy.org/ns/1.0/";
const XMP = 1060; // the number of a PSD's resource

// The workflow of a .psd, .psb or .ora file, or null when it holds none. Throws an Error with a sentence for one that is damaged.
export async function storedWorkflow(file) {
  const text = file.name.toLowerCase().endsWith(".ora") ? await fromOra(file) : await fromPsd(file);
  return text ? checked(text, file.name) : null;
}

function checked(text, name) {
  let graph;
  try {
    graph = JSON.parse(text);
  } catch {
    throw new Error(`The workflow in ${name} is damaged and was left out.`);
  }
  const isList = Array.isArray(graph?.nodes) && Array.isArray(graph.links ?? []);
  if (!isList || !graph.nodes.every((node) => typeof node?.type === "string")) {
    throw new Error(`The workflow in ${name} is no workflow of ComfyUI and was left out.`);
  }
  if (graph.nodes.length > MOST_NODES || isDeep(graph, MOST_LEVELS)) {
    throw new Error(`The workflow in ${name} is larger than any that people draw and was left out.`);
  }
  return graph;
}

function isDeep(value, levels) {
  if (typeof value !== "object" || value === null) return false;
  return levels === 0 || Object.values(value).some((inner) => isDeep(inner, levels - 1));
}

async function view(file, start, length) {
  return new DataView(await file.slice(start, start + length).arrayBuffer());
}

function latin(bytes, start, length) {
  return String.fromCharCode(...new Uint8Array(bytes.buffer, start, Math.min(length, bytes.byteLength - start)));
}

// ---- PSD: header, colour table, then resources; one of them is XMP, where texts are properties

async function fromPsd(file) {
  const header = await view(file, 0, 30);
  if (header.byteLength < 30 || latin(header, 0, 4) !== "8BPS") return null;
  const start = 30 + header.getUint32(26);
  const length = await view(file, start, 4);
  if (length.byteLength < 4 || length.getUint32(0) > MOST_INDEX) return null;
  const xmp = resource(await view(file, start + 4, length.getUint32(0)), XMP);
  return xmp && property(new TextDecoder().decode(xmp), "workflow");
}

function resource(bytes, wanted) {
  for (let at = 0; at + 12 <= bytes.byteLength && latin(bytes, at, 4) === "8BIM"; ) {
    const named = at + 6 + ((bytes.getUint8(at + 6) + 2) & ~1); // the name and its length, filled up to an even number
    if (named + 4 > bytes.byteLength) return null;
    const size = bytes.getUint32(named);
    if (bytes.getUint16(at + 4) === wanted) {
      return size > MOST_TEXT || named + 4 + size > bytes.byteLength ? null : new Uint8Array(bytes.buffer, named + 4, size);
    }
    at = named + 4 + size + (size & 1);
  }
  return null;
}

// Photoshop may write an element again as an attribute.
function property(xmp, name) {
  if (xmp.includes("<!")) return null; // entities have no place here
  const xml = new DOMParser().parseFromString(xmp, "application/xml");
  const element = xml.getElementsByTagNameNS(NAMESPACE, name)[0];
  const holder = [...xml.getElementsByTagName("*")].find((each) => each.hasAttributeNS(NAMESPACE, name));
  return element?.textContent ?? holder?.getAttributeNS(NAMESPACE, name) ?? null;
}

// ---- OpenRaster: a zip with an entry workflow.json

async function fromOra(file) {
  const tailStart = Math.max(0, file.size - 65557);
  const tail = await view(file, tailStart, file.size - tailStart);
  let end = tail.byteLength - 22;
  while (end >= 0 && tail.getUint32(end, true) !== 0x06054b50) end -= 1;
  if (end < 0 || tail.getUint32(end + 12, true) > MOST_INDEX) return null;
  const index = await view(file, tail.getUint32(end + 16, true), tail.getUint32(end + 12, true));
  const entry = indexEntry(index, "workflow.json");
  if (!entry || entry.packed > MOST_TEXT) return null;
  const local = await view(file, entry.start, 30);
  if (local.byteLength < 30) return null;
  const start = entry.start + 30 + local.getUint16(26, true) + local.getUint16(28, true);
  return unpacked(file.slice(start, start + entry.packed), entry.method, file.name);
}

function indexEntry(index, wanted) {
  for (let at = 0; at + 46 <= index.byteLength && index.getUint32(at, true) === 0x02014b50; ) {
    const [name, extra, comment] = [28, 30, 32].map((offset) => index.getUint16(at + offset, true));
    if (latin(index, at + 46, name) === wanted) {
      const [packed, start] = [20, 42].map((offset) => index.getUint32(at + offset, true));
      return { method: index.getUint16(at + 10, true), packed, start };
    }
    at += 46 + name + extra + comment;
  }
  return null;
}

async function unpacked(blob, method, name) {
  if (method !== 0 && method !== 8) return null;
  const stream = method ? blob.stream().pipeThrough(new DecompressionStream("deflate-raw")) : blob.stream();
  const reader = stream.getReader();
  const parts = [];
  for (let size = 0; ; ) {
    const { done, value } = await reader.read().catch(() => {
      throw new Error(`The workflow in ${name} is damaged and was left out.`);
    });
    if (done) return new Blob(parts).text();
    parts.push(value);
    size += value.length;
    if (size > MOST_TEXT) {
      reader.cancel().catch(() => {});
      throw new Error(`The workflow in ${name} is larger than any that people draw and was left out.`);
    }
  }
}
