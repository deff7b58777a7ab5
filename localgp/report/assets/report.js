"use strict";
// The mask viewer. Its data are described in localgp/report/viewer.py.
const errors = [];
window.addEventListener("error", (event) => errors.push(String(event.message)));
window.addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};

/** Longest common subsequence of two word lists: [word, "same" | "wrong" | "lost"] in reading order. */
function difference(reference, hypothesis) {
  const n = reference.length, m = hypothesis.length;
  const common = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  for (let i = n - 1; i >= 0; i--)
    for (let j = m - 1; j >= 0; j--)
      common[i][j] = reference[i] === hypothesis[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
  const parts = [];
  for (let i = 0, j = 0; i < n || j < m; ) {
    if (i < n && j < m && reference[i] === hypothesis[j]) { parts.push([reference[i], "same"]); i++; j++; }
    else if (j < m && (i === n || common[i][j + 1] >= common[i + 1][j])) parts.push([hypothesis[j++], "wrong"]);
    else parts.push([reference[i++], "lost"]);
  }
  return parts;
}

class Viewer {
  constructor(root, data) {
    this.data = data;
    this.palette = bytes(data.palette);
    for (const name of ["set", "run", "utterance", "padding", "audio", "about", "readout", "stack", "texts"])
      this[name] = root.querySelector(`[data-part=${name}]`);
    data.sets.forEach((set, i) => this.set.append(new Option(set.label, i)));
    this.set.closest("label").hidden = data.sets.length < 2;
    this.set.addEventListener("change", () => this.fill());
    for (const node of [this.run, this.utterance, this.padding]) node.addEventListener("change", () => this.show());
    this.audio.addEventListener("timeupdate", () => this.movePlayhead());
    this.audio.addEventListener("play", () => this.follow());
    this.stack.addEventListener("pointermove", (event) => this.hover(event));
    this.stack.addEventListener("pointerleave", () => this.rest());
    this.stack.addEventListener("click", (event) => {
      const time = this.timeOf(event);
      if (this.item.audio && time <= this.item.seconds) { this.audio.currentTime = time; this.movePlayhead(); }
    });
    let width = 0;
    new ResizeObserver(() => {
      if (this.stack.clientWidth === width) return;
      width = this.stack.clientWidth;
      requestAnimationFrame(() => this.draw()); // drawing changes the height, which an observer must not do
    }).observe(this.stack);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.fill();
  }

  fill() {
    const set = this.data.sets[this.set.value];
    this.run.replaceChildren(...set.runs.map((run, i) => new Option(run.label, i)));
    this.utterance.replaceChildren(...set.utterances.map((u, i) => new Option(`${u.language} · ${u.id}`, i)));
    // A mask to look at first: one that differs from frame to frame, if there is any.
    const framewise = set.runs.findIndex((run) => run.gates?.framewise);
    const gated = set.runs.findIndex((run) => run.gates);
    this.run.value = Math.max(0, framewise >= 0 ? framewise : gated);
    this.show();
  }

  show() {
    const set = this.data.sets[this.set.value];
    this.item = set.utterances[this.utterance.value];
    this.chosen = set.runs[this.run.value];
    const gates = this.chosen.gates, packed = this.chosen.masks[this.utterance.value];
    this.mask = null;
    if (gates && packed) {
      const raw = bytes(packed);
      this.mask = (layer, module, frame) => {
        const bit = (layer * gates.modules.length + module) * gates.frames + frame;
        return (raw[bit >> 3] >> (7 - (bit & 7))) & 1;
      };
    }
    this.audio.hidden = !this.item.audio;
    if (this.item.audio && this.audio.getAttribute("src") !== this.item.audio) this.audio.src = this.item.audio;
    const about = [`${this.item.seconds.toFixed(2)} s`];
    if (this.item.speaker) about.push(`speaker ${this.item.speaker}`);
    if (this.item.noise) about.push(this.item.noise === "clean" ? "no noise" : `${this.item.noise} noise, ${this.item.snr} dB`);
    this.about.textContent = about.join(" · ");
    this.rest();
    this.draw();
    this.write();
  }

  /** Seconds that the pictures span. */
  get span() {
    const gates = this.chosen.gates;
    return gates && this.padding.checked ? gates.frames * gates.step : this.item.seconds;
  }

  /** Frames of the mask that carry signal. */
  get signalFrames() {
    const gates = this.chosen.gates;
    return Math.min(gates.frames, Math.max(0, Math.round(this.item.seconds / gates.step)));
  }

  canvas(height, label, text, paint) {
    const width = Math.max(50, this.stack.clientWidth), scale = window.devicePixelRatio || 1;
    const canvas = make("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
    canvas.style.height = `${height}px`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${label}: ${text}`);
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.fillStyle = css("--closed");
    context.fillRect(0, 0, width, height);
    paint(context, width, height);
    this.stack.append(make("div", { className: "label" }, make("span", {}, label), make("span", {}, text)), canvas);
    return canvas;
  }

  draw() {
    if (!this.item) return;
    this.stack.replaceChildren();
    this.layers = [];
    if (this.item.mel) this.drawSpectrogram();
    if (this.item.speech) this.drawSpeech();
    if (this.mask) this.chosen.gates.modules.forEach((name, module) => this.drawMask(name, module));
    else this.stack.append(make("p", { className: "note" }, this.chosen.gates
      ? "This run did not decode this utterance." : "This run is dense: every module runs on every frame."));
    this.playhead = make("div", { className: "playhead", hidden: !this.item.audio });
    this.stack.append(this.playhead);
    this.movePlayhead();
  }

  drawSpectrogram() {
    const mel = this.item.mel, values = bytes(mel.data);
    const picture = make("canvas", { width: mel.frames, height: mel.bands });
    const image = picture.getContext("2d").createImageData(mel.frames, mel.bands);
    for (let band = 0; band < mel.bands; band++)
      for (let frame = 0; frame < mel.frames; frame++) {
        const colour = 3 * values[band * mel.frames + frame], at = 4 * ((mel.bands - 1 - band) * mel.frames + frame);
        image.data.set([this.palette[colour], this.palette[colour + 1], this.palette[colour + 2], 255], at);
      }
    picture.getContext("2d").putImageData(image, 0, 0);
    this.melValues = values;
    const node = this.canvas(150, "log-mel spectrogram", `${mel.bands} bands, ${Math.round(mel.high - mel.low)} dB`, (context, width, height) => {
      context.drawImage(picture, 0, 0, (mel.frames * mel.hop / this.span) * width, height);
    });
    this.layers.push([node, (time, share) => this.describeMel(time, share)]);
  }

  describeMel(time, share) {
    const mel = this.item.mel, band = Math.min(mel.bands - 1, Math.floor((1 - share) * mel.bands));
    const frame = Math.round(time / mel.hop);
    if (frame >= mel.frames) return "padding";
    const level = mel.low + (this.melValues[band * mel.frames + frame] / 255) * (mel.high - mel.low);
    return `${(this.item.hz[band] / 1000).toFixed(2)} kHz, ${level.toFixed(0)} dB`;
  }

  drawSpeech() {
    const total = this.item.speech.reduce((sum, [a, b]) => sum + b - a, 0);
    const text = `${Math.round((100 * total) / this.item.seconds)} % of the utterance`;
    const node = this.canvas(16, "true speech", text, (context, width, height) => {
      context.fillStyle = css("--blue");
      for (const [a, b] of this.item.speech) context.fillRect((a / this.span) * width, 2, ((b - a) / this.span) * width, height - 4);
    });
    this.layers.push([node, (time) => this.item.speech.some(([a, b]) => a <= time && time < b) ? "speech" : "no speech"]);
  }

  drawMask(name, module) {
    const { layers, frames, step } = this.chosen.gates, signal = this.signalFrames;
    let open = 0;
    for (let layer = 0; layer < layers; layer++) for (let t = 0; t < signal; t++) open += this.mask(layer, module, t);
    const text = `runs on ${Math.round((100 * open) / Math.max(1, layers * signal))} % of frames with signal`;
    const row = Math.max(6, Math.min(16, 130 / layers));
    const node = this.canvas(row * layers, name, text, (context, width, height) => {
      const perFrame = (step / this.span) * width;
      context.fillStyle = css("--orange");
      for (let layer = 0; layer < layers; layer++)
        for (let t = 0; t < frames; ) {
          if (!this.mask(layer, module, t)) { t++; continue; }
          const begin = t;
          while (t < frames && this.mask(layer, module, t)) t++;
          context.fillRect(begin * perFrame, height - (layer + 1) * row, (t - begin) * perFrame, row - 1);
        }
      context.strokeStyle = css("--ink");
      context.setLineDash([4, 3]);
      context.beginPath();
      context.moveTo(signal * perFrame, 0);
      context.lineTo(signal * perFrame, height);
      context.stroke();
    });
    this.layers.push([node, (time, share) => {
      const layer = Math.min(layers - 1, Math.floor((1 - share) * layers)), frame = Math.min(frames - 1, Math.floor(time / step));
      const here = frame >= signal ? ", padding" : "";
      return `${name}, layer ${layer + 1}: ${this.mask(layer, module, frame) ? "runs" : "skipped"}${here}`;
    }]);
  }

  timeOf(event) {
    const box = this.stack.getBoundingClientRect();
    return Math.max(0, Math.min(0.9999, (event.clientX - box.left) / box.width)) * this.span;
  }

  hover(event) {
    const time = this.timeOf(event), parts = [`${time.toFixed(2)} s`];
    for (const [node, describe] of this.layers) {
      const box = node.getBoundingClientRect(), share = (event.clientY - box.top) / box.height;
      if (share >= 0 && share < 1) parts.push(describe(time, share));
    }
    const word = (this.item.words || []).find(([a, b]) => a <= time && time < b);
    if (word) parts.push(`“${word[2]}”`);
    if (this.mask) {
      const { modules, layers, frames, step } = this.chosen.gates, frame = Math.min(frames - 1, Math.floor(time / step));
      let open = 0;
      for (let layer = 0; layer < layers; layer++) for (let m = 0; m < modules.length; m++) open += this.mask(layer, m, frame);
      parts.push(`${open} of ${layers * modules.length} gated modules run on this frame`);
    }
    this.readout.textContent = parts.join(" · ");
  }

  rest() {
    this.readout.textContent = "Point at a picture for its values; click to play from there.";
  }

  movePlayhead() {
    if (this.playhead) this.playhead.style.left = `${(100 * Math.min(this.span, this.audio.currentTime || 0)) / this.span}%`;
  }

  follow() {
    this.movePlayhead();
    if (!this.audio.paused) requestAnimationFrame(() => this.follow());
  }

  write() {
    const said = this.chosen.hypothesis[this.utterance.value] || {};
    const rows = Object.entries(this.item.reference).map(([task, reference]) => {
      const cell = make("td");
      if (said[task] === undefined) cell.append(make("span", { className: "missing" }, "not decoded"));
      else for (const [word, kind] of difference(reference.split(/\s+/), said[task].split(/\s+/).filter(Boolean)))
        cell.append(kind === "same" ? word : make(kind === "wrong" ? "mark" : "del", { className: kind }, word), " ");
      return make("tr", {}, make("th", { scope: "row" }, task), make("td", {}, reference), cell);
    });
    this.texts.replaceChildren(...rows);
  }

  /** Tries every choice: what a test asks, and anyone with the console can. */
  async selftest() {
    const picture = () => { // FNV-1a over all pictures: equal ones can be told from different ones
      let hash = 2166136261;
      for (const canvas of this.stack.querySelectorAll("canvas"))
        for (const character of canvas.toDataURL()) hash = Math.imul(hash ^ character.charCodeAt(0), 16777619);
      return hash >>> 0;
    };
    const seen = [];
    for (let s = 0; s < this.data.sets.length; s++) {
      this.set.value = s; this.set.dispatchEvent(new Event("change"));
      for (let r = 0; r < this.data.sets[s].runs.length; r++)
        for (let u = 0; u < this.data.sets[s].utterances.length; u++) {
          this.run.value = r; this.utterance.value = u;
          this.utterance.dispatchEvent(new Event("change"));
          const item = this.item, entry = { utterance: item.id, run: this.chosen.label, picture: picture(),
            text: this.texts.textContent, canvases: this.stack.querySelectorAll("canvas").length, duration: null };
          if (item.audio && r === 0) entry.duration = await new Promise((resolve) => {
            const sound = new Audio(item.audio);
            sound.addEventListener("loadedmetadata", () => resolve(sound.duration));
            sound.addEventListener("error", () => resolve(-1));
          });
          seen.push({ ...entry, seconds: item.seconds, source: (this.audio.getAttribute("src") || "").slice(0, 22) });
        }
    }
    this.set.value = 0; this.set.dispatchEvent(new Event("change"));
    return { seen, errors };
  }
}

document.addEventListener("DOMContentLoaded", () => {
  const data = document.getElementById("viewer-data");
  if (data) window.viewer = new Viewer(document.getElementById("viewer"), JSON.parse(data.textContent));
});
