// Boxes over the picture: as SVG on the page, on a canvas for the picture that is saved.

const pen = document.createElement("canvas").getContext("2d");
const FONT = "system-ui, sans-serif";

function caption(found) {
  return `${found.name} ${found.score.toFixed(2)}`;
}

// Ink that is read on a colour #rrggbb
function ink(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#000" : "#fff";
}

// Where captions go, best detections first: above, else inside, below or at the foot; the first place that is free.
function places(detections, size, width, height) {
  pen.font = `600 ${size}px ${FONT}`;
  const pad = size * 0.35;
  const tall = size * 1.35;
  const taken = [];
  return detections.map((found) => {
    const [x1, y1, x2, y2] = found.box;
    const wide = pen.measureText(caption(found)).width + 2 * pad;
    const lefts = [Math.min(x1, width - wide), x2 - wide].map((x) => Math.max(0, x));
    const tops = [y1 - tall, y1, y2, y2 - tall].filter((y) => y >= 0 && y + tall <= height);
    const all = (tops.length ? tops : [0]).flatMap((y) => lefts.map((x) => ({ x, y, wide, tall, pad })));
    const free = all.find((a) => !taken.some((b) => a.x < b.x + b.wide && b.x < a.x + a.wide && a.y < b.y + tall && b.y < a.y + tall));
    taken.push(free ?? all[0]);
    return free ?? all[0];
  });
}

function svg(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

function frame([x1, y1, x2, y2], more) {
  return svg("rect", { x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0), ...more });
}

// Draw boxes into `layer`, an SVG that lies over `photo`; those of `ghosts` dashed, below the others.
export function drawn(layer, photo, answer, detections, ghosts, colours, named) {
  const { width, height } = answer;
  const size = 13 * (width / (photo.clientWidth || width)); // 13 pixels on the screen
  layer.setAttribute("viewBox", `0 0 ${width} ${height}`);
  layer.setAttribute("preserveAspectRatio", "none");
  layer.setAttribute("aria-label", `${detections.length} boxes`);
  const spots = named ? places(detections, size, width, height) : [];
  const frames = detections.map((found, place) => {
    const group = svg("g", { class: "frame", "data-place": place, "data-score": found.score });
    group.append(frame(found.box, { stroke: colours.get(found.label), "stroke-width": 2.5 }));
    return group;
  });
  const captions = spots.map(({ x, y, wide, tall, pad }, place) => {
    const colour = colours.get(detections[place].label);
    const group = svg("g", { class: "caption", "data-place": place });
    const ground = svg("rect", { x, y, width: wide, height: tall });
    ground.style.fill = colour;
    const text = { x: x + pad, y: y + tall * 0.75, "font-size": size, "font-family": FONT, fill: ink(colour) };
    group.append(ground, svg("text", text, caption(detections[place])));
    return group;
  });
  const own = ghosts.map((found) => frame(found.box, { class: "own", "stroke-width": 2 }));
  layer.replaceChildren(...own, ...frames.reverse(), ...captions.reverse()); // the best on top
}

// The picture in its own size with boxes, as a canvas.
export function labelled(photo, answer, detections, colours, named) {
  const { width, height } = answer;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const size = Math.max(10, Math.max(width, height) / 52);
  const spots = places(detections, size, width, height);
  context.drawImage(photo, 0, 0, width, height);
  context.lineWidth = Math.max(1, Math.max(width, height) / 320);
  const worstFirst = detections.map((found, place) => [found, spots[place]]).reverse();
  for (const [{ box: [x1, y1, x2, y2], label }] of worstFirst) {
    context.strokeStyle = colours.get(label);
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
  context.font = `600 ${size}px ${FONT}`;
  for (const [found, { x, y, wide, tall, pad }] of named ? worstFirst : []) {
    const colour = colours.get(found.label);
    context.fillStyle = colour;
    context.fillRect(x, y, wide, tall);
    context.fillStyle = ink(colour);
    context.fillText(caption(found), x + pad, y + tall * 0.75);
  }
  return canvas;
}
