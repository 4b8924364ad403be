// Example prompts, with the colours of their small pictures.

const PATHS = {
  ball: "M11 6a5 5 0 1 0 .01 0z",
  star: "M11 4.6l1.9 4.2 4.5.4-3.4 3 1 4.4-4-2.3-4 2.3 1-4.4-3.4-3 4.5-.4z",
  ring: "M11 5a6 6 0 1 0 .01 0zM11 8a3 3 0 1 1-.01 0z",
  triangle: "M11 5l6 10.5H5z",
  square: "M6.5 6.5h9v9h-9z",
};

const EXAMPLES = [
  { text: "a red ball bouncing on a blue background", fore: "#eb2d2d", back: "#1932aa", shape: "ball" },
  { text: "a green star spinning on a black background", fore: "#3cd74b", back: "#080808", shape: "star" },
  { text: "a yellow ring orbiting on a purple background", fore: "#fae137", back: "#551c78", shape: "ring" },
  { text: "a white square rising slowly on a red background", fore: "#fafafa", back: "#82161c", shape: "square" },
  { text: "an orange triangle moving left at night", fore: "#ff9123", back: "#0a0c26", shape: "triangle" },
];

const SVG = "http://www.w3.org/2000/svg";

function picture({ fore, back, shape }) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 22 22");
  svg.setAttribute("aria-hidden", "true");
  const ground = document.createElementNS(SVG, "path");
  ground.setAttribute("d", "M0 0h22v22H0z");
  ground.setAttribute("fill", back);
  const object = document.createElementNS(SVG, "path");
  object.setAttribute("d", PATHS[shape]);
  object.setAttribute("fill", fore);
  object.setAttribute("fill-rule", "evenodd");
  svg.append(ground, object);
  return svg;
}

/** Fill `container` with one button per example; use(text) is called on a click. */
export function addExamples(container, use) {
  for (const example of EXAMPLES) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(picture(example), document.createTextNode(example.text));
    button.addEventListener("click", () => use(example.text));
    container.append(button);
  }
}
