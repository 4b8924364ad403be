import { Stream } from "./turboserve.js";

const find = (name) => document.querySelector(name);
const stream = new Stream({ canvas: find("canvas") });

stream.on("phase", ({ phase }) => (find("p").textContent = phase));
find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (stream.isLive) stream.prompt(find("input").value, { blendChunks: 2 });
  else stream.start({ prompt: find("input").value });
});
