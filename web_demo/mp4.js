// An MP4 file from H.264 access units, as they came: nothing is encoded again. Pure.
//
// Sample entry avc3: parameter sets are also in the stream, so a chunk by another encoder (after a move) plays too.

/**
 * @import { Bytes, Media } from "./protocol.js"
 * @typedef {{nals: Bytes[], isKey: boolean}} Sample
 * @typedef {{sps: Bytes, pps: Bytes}} Config
 */

const MAX_BYTES = 256 * 1024 * 1024;
const TIMESCALE = 90_000;

/** @param {string} text */
const ascii = (text) => [...text].map((letter) => letter.charCodeAt(0));
/** @param {number} value */
const u16 = (value) => [(value >>> 8) & 255, value & 255];
/** @param {number} value */
const u32 = (value) => [(value >>> 24) & 255, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];

/** @param {string} name @param {...ArrayLike<number>} parts */
function box(name, ...parts) {
  const length = 8 + parts.reduce((sum, part) => sum + part.length, 0);
  const bytes = new Uint8Array(length);
  bytes.set([...u32(length), ...ascii(name)]);
  let offset = 8;
  for (const part of parts) {
    bytes.set(part, offset);
    offset += part.length;
  }
  return bytes;
}

/** The NAL units of an Annex-B access unit, without start codes. @param {Bytes} unit */
export function nalUnits(unit) {
  const found = [];
  let begin = -1;
  for (let i = 0; i + 2 < unit.length; i++) {
    if (unit[i] !== 0 || unit[i + 1] !== 0 || unit[i + 2] !== 1) continue;
    if (begin >= 0) found.push(unit.subarray(begin, unit[i - 1] === 0 ? i - 1 : i));
    begin = i + 3;
    i += 2;
  }
  if (begin >= 0) found.push(unit.subarray(begin));
  return found.filter((nal) => nal.length > 0);
}

/** @param {Bytes} nal */
const typeOf = (nal) => nal[0] & 0x1f;
const SPS = 7;
const PPS = 8;

/** The parameter sets among these, or null. @param {Bytes[]} nals @returns {Config | null} */
function configOf(nals) {
  const [sps, pps] = [SPS, PPS].map((type) => nals.find((nal) => typeOf(nal) === type));
  return sps && pps ? { sps, pps } : null;
}

export class Recorder {
  #video;
  /** @type {Sample[]} */ #samples = [];
  /** @type {Config | null} */ #config = null;
  /** @type {Sample[] | null} */ #open = null; // the samples of the chunk that is being received
  bytes = 0;

  /** @param {{width: number, height: number, fps: number}} video */
  constructor(video) {
    this.#video = video;
  }

  get durationMs() {
    return (this.#samples.length * 1000) / this.#video.fps;
  }

  get isFull() {
    return this.bytes > MAX_BYTES;
  }

  /** Take one media message that is new; a chunk counts when it is complete. @param {Media} media */
  part({ header, units }) {
    if (header.part === 0) this.#open = [];
    const open = this.#open;
    if (open === null || this.isFull) return; // the middle of a chunk: its beginning is not here
    units.forEach((unit, index) => open.push({ nals: nalUnits(unit), isKey: index === 0 && header.key === true }));
    if (header.part < header.parts - 1) return;
    this.#config ??= configOf(open[0].nals);
    for (const sample of open) {
      this.#samples.push(sample);
      this.bytes += sample.nals.reduce((sum, nal) => sum + 4 + nal.length, 0);
    }
    this.#open = null;
  }

  /** @returns {Blob | null} null when no chunk came */
  file() {
    if (this.#config === null || this.#samples.length === 0) return null;
    const ftyp = box("ftyp", ascii("isom"), u32(512), ascii("isomiso2avc1mp41"));
    // The index goes first, so that a player can begin at once; its length does not depend on the offset in it.
    const offset = ftyp.length + this.#moov(0).length + 8;
    const data = this.#samples.flatMap(({ nals }) => nals.flatMap((nal) => [new Uint8Array(u32(nal.length)), nal]));
    const mdat = new Uint8Array([...u32(8 + this.bytes), ...ascii("mdat")]);
    return new Blob([ftyp, this.#moov(offset), mdat, ...data], { type: "video/mp4" });
  }

  /** @param {number} offset */
  #moov(offset) {
    const { width, height, fps } = this.#video;
    const count = this.#samples.length;
    const frame = Math.round(TIMESCALE / fps);
    const duration = u32(count * frame);
    const unity = [...u32(0x10000), ...u32(0), ...u32(0), ...u32(0), ...u32(0x10000), ...u32(0), ...u32(0), ...u32(0), ...u32(0x40000000)];
    const zeros = (/** @type {number} */ length) => new Array(length).fill(0);
    const mvhd = box("mvhd", zeros(12), u32(TIMESCALE), duration, u32(0x10000), u16(0x100), zeros(10), unity, zeros(24), u32(2));
    const tkhd = box("tkhd", u32(7), zeros(8), u32(1), zeros(4), duration, zeros(16), unity, u32(width << 16), u32(height << 16));
    const mdhd = box("mdhd", zeros(12), u32(TIMESCALE), duration, u16(0x55c4), zeros(2));
    const hdlr = box("hdlr", zeros(8), ascii("vide"), zeros(12), [0]);
    const dinf = box("dinf", box("dref", zeros(4), u32(1), box("url ", u32(1))));
    const keys = this.#samples.flatMap(({ isKey }, index) => (isKey ? u32(index + 1) : []));
    const sizes = this.#samples.flatMap(({ nals }) => u32(nals.reduce((sum, nal) => sum + 4 + nal.length, 0)));
    const stbl = box("stbl",
      box("stsd", zeros(4), u32(1), this.#sampleEntry()),
      box("stts", zeros(4), u32(1), u32(count), u32(frame)),
      box("stss", zeros(4), u32(keys.length / 4), keys),
      box("stsc", zeros(4), u32(1), u32(1), u32(count), u32(1)),
      box("stsz", zeros(4), u32(0), u32(count), sizes),
      box("stco", zeros(4), u32(1), u32(offset)));
    const minf = box("minf", box("vmhd", u32(1), zeros(8)), dinf, stbl);
    return box("moov", mvhd, box("trak", tkhd, box("mdia", mdhd, hdlr, minf)));
  }

  #sampleEntry() {
    const { width, height } = this.#video;
    const { sps, pps } = /** @type {Config} */ (this.#config); // `file` has seen to it
    const config = box("avcC", [1, sps[1], sps[2], sps[3], 0xff, 0xe1], u16(sps.length), sps, [1], u16(pps.length), pps);
    const zeros = (/** @type {number} */ length) => new Array(length).fill(0);
    return box("avc3", zeros(6), u16(1), zeros(16), u16(width), u16(height), u32(0x480000), u32(0x480000), zeros(4), u16(1), zeros(32),
      u16(24), u16(0xffff), config);
  }
}
