"use strict";
/* The report's page. `mount(trace, pictures, root)` builds it into `root`; trace and pictures are described at the head of
   inspection/report.py. Text only ever enters as text (textContent), so that no name out of a file can become HTML. */

const SVG = "http://www.w3.org/2000/svg";
const AT_ONCE = window.matchMedia("(min-width: 62rem)").matches ? 120 : 24; // objects listed before "Show more"
const MANY = 600; // objects in the picture; beyond it boxes have no dark rim, so that the page stays quick
const HEADLINES = { input: "original", anchors: "anchors", proposals: "proposals", levels: "rois", boxes: "found", masks: "found", result: "detections" };
const UNITS = { input: "px", features: "maps", anchors: "anchors", proposals: "proposals", levels: "RoIs", boxes: "kept", masks: "masks", result: "detections", weights: "layers" };
const FACTS = {
  width: "width, px", height: "height, px", network_width: "width in the network, px", network_height: "height in the network, px",
  level: "level", stride: "stride, px", cells_across: "cells across", cells_down: "cells down", iou: "IoU with it",
  objectness: "objectness", rank: "rank", row: "row", score: "score", class: "class", grid: "grid",
  threshold: "threshold", kept_by_nms: "kept by NMS", best_classes: "best classes",
};
const KINDS = {
  duplicate: "of an object that another detection found", class: "on an object of another class", place: "badly placed",
  both: "badly placed and of another class", background: "on background",
};
const STATES = { here: ["✓", "passed"], lost: ["✕", "lost here"], gone: ["–", "lost before"] };

function mount(trace, pictures, root) {
  const stages = withWeights(trace);
  const objects = trace.objects;
  const byId = new Map(objects.map((object) => [object.id, object]));
  const gates = new Map([["found", "Found"], ...trace.gates.map((gate) => [gate.gate, gate.title])]);
  const noun = trace.ground_truth ? "object" : "detection";
  const state = { stage: stages[0].stage, object: null, gate: "", shown: AT_ONCE };
  const parts = {};

  root.replaceChildren(
    element("a", { class: "skip", href: "#stage-panel" }, "To the open stage"),
    head(), strip(),
    element("main", { class: "body" }, viewer(), panel(), list()),
    (parts.dialog = element("dialog", { "aria-label": "Enlarged figure" })),
    (parts.said = element("p", { class: "unseen", role: "status", "aria-live": "polite" })),
  );
  window.addEventListener("hashchange", () => { readHash(); renderAll(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.object !== null && !parts.dialog.open) follow(null);
  });
  readHash();
  renderAll();

  // ------------------------------------------------------------------ what the person does

  function open(stage, focus) {
    state.stage = stage;
    renderAll();
    writeHash();
    const tab = parts.tabs.get(stage);
    if (focus) tab.focus();
    tab.scrollIntoView({ block: "nearest", inline: "center" });
  }

  function follow(id) {
    state.object = id;
    const object = byId.get(id);
    renderAll();
    writeHash();
    parts.said.textContent = object ? `Following ${label(object)}: ${gates.get(object.gate)}. ${object.sentence}` : "Following nothing.";
    if (!object) return;
    const { top, bottom } = parts.followed.getBoundingClientRect();
    if (bottom < 80 || top > window.innerHeight - 80) parts.followed.scrollIntoView({ block: "nearest" });
  }

  function step(by) {
    const shown = filtered();
    if (!shown.length) return;
    const now = shown.findIndex((object) => object.id === state.object);
    follow(shown[now < 0 ? (by > 0 ? 0 : shown.length - 1) : (now + by + shown.length) % shown.length].id);
  }

  function filter(gate) {
    state.gate = gate;
    state.shown = AT_ONCE;
    renderAll();
  }

  function filtered() {
    if (!state.gate) return objects;
    return objects.filter((object) => (state.gate === "lost" ? !object.found : object.gate === state.gate));
  }

  function readHash() {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (parts.tabs.has(asked.get("stage"))) state.stage = asked.get("stage");
    const id = asked.has("object") ? Number(asked.get("object")) : null;
    if (asked.has("stage")) state.object = byId.has(id) ? id : null;
  }

  function writeHash() {
    const hash = `#stage=${state.stage}` + (state.object === null ? "" : `&object=${state.object}`);
    try { history.replaceState(null, "", hash); } catch { /* inside some frames a page has no address */ }
  }

  // ------------------------------------------------------------------ the parts, made once

  function head() {
    const found = objects.filter((object) => object.found).length;
    const lost = objects.length - found;
    const chips = trace.ground_truth
      ? [["", "", `${plural(objects.length, noun)}`], ["found", "found", `${number(found)} found`], ["lost", "lost", `${number(lost)} lost`]]
      : [["", "", plural(objects.length, noun)]];
    parts.chips = chips.map(([gate, kind, text]) => {
      const chip = element("button", { type: "button", class: `chip ${kind}`, "aria-pressed": "false" }, text);
      chip.addEventListener("click", () => filter(gate));
      return [gate, chip];
    });
    return element("header", { class: "head" },
      element("p", { class: "eyebrow" }, "From picture to mask, step by step"),
      element("h1", {}, element("span", { class: "name", dir: "auto" }, trace.title || "What the detector saw")),
      element("ul", { class: "summary", "aria-label": `Which ${noun}s are shown` }, parts.chips.map(([, chip]) => element("li", {}, chip))));
  }

  function strip() {
    parts.tabs = new Map(stages.map((stage) => {
      const tab = element("button", { type: "button", role: "tab", class: "tab", id: `tab-${stage.stage}`, "aria-controls": "stage-panel" });
      tab.addEventListener("click", () => open(stage.stage));
      return [stage.stage, tab];
    }));
    const tablist = element("div", { class: "tabs", role: "tablist", "aria-label": "Stages, in order" }, [...parts.tabs.values()]);
    tablist.addEventListener("keydown", (event) => {
      const to = moved(event.key, stages.findIndex((stage) => stage.stage === state.stage), stages.length, "ArrowLeft", "ArrowRight");
      if (to === null) return;
      event.preventDefault();
      open(stages[to].stage, true);
    });
    return element("nav", { class: "strip", "aria-label": "Stages" }, tablist);
  }

  function viewer() {
    const { width, height } = trace.picture;
    parts.overlay = shape("g", { class: "overlay" });
    parts.picture = shape("svg", { class: "picture", role: "img", viewBox: `0 0 ${width} ${height}` },
      photograph(pictures.picture, width, height), parts.overlay);
    parts.picture.style.aspectRatio = `${width} / ${height}`;
    parts.legend = element("ul", { class: "legend" });
    parts.where = element("p", { class: "soft" });
    const previous = element("button", { type: "button", class: "tool", "aria-label": `Previous ${noun}` }, "‹");
    const next = element("button", { type: "button", class: "tool", "aria-label": `Next ${noun}` }, "›");
    previous.addEventListener("click", () => step(-1));
    next.addEventListener("click", () => step(1));
    parts.followed = element("section", { class: "card", "aria-labelledby": "followed-title" });
    return element("div", { class: "view" },
      element("section", { class: "card", "aria-labelledby": "picture-title" },
        element("div", { class: "row" }, (parts.pictureTitle = element("h2", { id: "picture-title" })), previous, next),
        parts.where, parts.picture, parts.legend),
      parts.followed);
  }

  function panel() {
    parts.panel = element("div", { class: "stage", id: "stage-panel", role: "tabpanel", tabindex: "0" });
    return parts.panel;
  }

  function list() {
    const count = (test) => objects.filter(test).length;
    const choices = [element("option", { value: "" }, `All (${objects.length})`)];
    if (trace.ground_truth) {
      choices.push(element("option", { value: "lost" }, `Lost anywhere (${count((o) => !o.found)})`));
      for (const [gate, title] of gates) {
        const n = count((object) => object.gate === gate);
        if (n) choices.push(element("option", { value: gate }, `${title} (${n})`));
      }
    }
    parts.select = element("select", { id: "gate" }, choices);
    parts.select.addEventListener("change", () => filter(parts.select.value));
    parts.objects = element("ol", { class: "objects" });
    parts.objects.addEventListener("keydown", (event) => {
      const buttons = [...parts.objects.querySelectorAll("button")];
      const to = moved(event.key, buttons.indexOf(document.activeElement), buttons.length, "ArrowUp", "ArrowDown");
      if (to === null) return;
      event.preventDefault();
      buttons.forEach((button, i) => { button.tabIndex = i === to ? 0 : -1; });
      buttons[to].focus();
    });
    parts.more = element("button", { type: "button", class: "tool more" }, "Show more");
    parts.more.addEventListener("click", () => { state.shown += 5 * AT_ONCE; renderList(); });
    return element("section", { class: "card list", "aria-labelledby": "list-title" },
      element("div", { class: "row" },
        element("h2", { id: "list-title" }, trace.ground_truth ? "Objects" : "Detections"),
        choices.length > 1 ? element("span", { class: "choice" }, element("label", { for: "gate", class: "soft" }, "Show"), parts.select) : ""),
      element("p", { class: "soft" }, objects.length ? `Choose one to follow it through all stages. Arrow keys move, Enter chooses, Escape lets go.` : `There are none.`),
      parts.objects, parts.more);
  }

  // ------------------------------------------------------------------ what changes with the state

  function renderAll() {
    renderStrip();
    renderPicture();
    renderFollowed();
    renderPanel();
    renderList();
    for (const [gate, chip] of parts.chips) chip.setAttribute("aria-pressed", String(gate === state.gate));
    parts.select.value = state.gate;
  }

  function renderStrip() {
    const object = byId.get(state.object);
    stages.forEach((stage, i) => {
      const tab = parts.tabs.get(stage.stage);
      const at = object && pathAt(object, stage.stage);
      tab.className = `tab ${at ? at.state : ""}`;
      tab.setAttribute("aria-selected", String(stage.stage === state.stage));
      tab.tabIndex = stage.stage === state.stage ? 0 : -1;
      const mark = at ? [element("span", { class: "mark", "aria-hidden": "true" }, `${STATES[at.state][0]} `), element("span", { class: "unseen" }, `, ${STATES[at.state][1]}`)] : [];
      tab.replaceChildren(element("b", {}, mark[0] || "", `${i + 1} ${stage.title}`), element("span", {}, headline(stage)), mark[1] || "");
    });
  }

  function headline(stage) {
    const left = objects.filter((object) => (pathAt(object, stage.stage) || {}).state === "here").length;
    if (trace.ground_truth && objects.length && stage.stage !== "weights" && left < objects.length) return `${number(left)} of ${number(objects.length)} left`;
    const count = stage.counts.find((each) => each.key === HEADLINES[stage.stage]);
    return count ? `${value(count.value)} ${UNITS[stage.stage]}` : `${number(stage.counts.length)} ${UNITS[stage.stage]}`;
  }

  function renderPicture() {
    const stage = stages.find((each) => each.stage === state.stage);
    const object = byId.get(state.object);
    const shown = filtered();
    const drawn = [...shown].sort((a, b) => size(b.box) - size(a.box));
    parts.overlay.replaceChildren(
      ...falsePositives().map((each) => shape("g", { class: object ? "faint" : "" }, rectangle(each.box, "line false"))),
      ...drawn.filter((each) => each !== object).map((each) => {
        const group = shape("g", { class: object ? "faint" : "" }, marks(each, state.stage, false));
        const hit = rectangle(each.box, "hit");
        hit.append(shape("title", {}, `${label(each)}: ${gates.get(each.gate)}`));
        hit.addEventListener("click", () => follow(each.id));
        group.append(hit);
        return group;
      }),
      ...(object ? [shape("g", {}, marks(object, state.stage, true))] : []));
    const where = object ? `${label(object)} at stage ${stage.title}` : `${plural(shown.length, noun)} at stage ${stage.title}`;
    parts.pictureTitle.textContent = object ? capital(label(object)) : "The picture";
    parts.where.textContent = object ? `at stage ${stage.title}` : shown.length ? `${plural(shown.length, noun)} at stage ${stage.title}. Click one to follow it.` : `No ${noun}s to show.`;
    parts.picture.setAttribute("aria-label", `The picture, ${trace.picture.width} by ${trace.picture.height} pixels, with boxes drawn over it: ${where}.`);
    parts.legend.replaceChildren(...legend(object));
  }

  function legend(object) {
    const at = object && pathAt(object, state.stage);
    const entries = [];
    if (object) {
      entries.push(["truth", trace.ground_truth ? "the object" : "the detection"]);
      if (at && at.before) entries.push(["before", "before this stage"]);
      if (at && at.box && state.stage !== "input") entries.push(["after", "at this stage"]);
    } else {
      const shown = filtered();
      const here = (each) => (pathAt(each, state.stage) || { state: "here" }).state === "here";
      if (shown.some(here)) entries.push(["found", `still here (${number(shown.filter(here).length)})`]);
      if (!shown.every(here)) entries.push(["lost", `lost here or before (${number(shown.filter((each) => !here(each)).length)})`]);
      if (falsePositives().length) entries.push(["false", `false positives (${number(falsePositives().length)})`]);
    }
    return entries.map(([kind, text]) => element("li", {},
      shape("svg", { class: "overlay", viewBox: "0 0 30 18", "aria-hidden": "true" }, shape("path", { class: `line ${kind}`, d: "M4 9H26" })), text));
  }

  function falsePositives() { return state.stage === "result" ? trace.false_positives : []; }

  function marks(object, stage, followed) {
    const at = pathAt(object, stage) || { state: "here", box: object.box, before: null };
    const boxes = [];
    if (object.outline.length && (stage === "masks" || stage === "result")) {
      const d = object.outline.map((ring) => "M" + ring.reduce((all, v, i) => all + (i ? (i % 2 ? " " : "L") : "") + v, "") + "Z").join("");
      boxes.push(shape("path", { class: "mask", d }));
    }
    const rim = followed || objects.length <= MANY;
    const draw = (box, kind) => boxes.push(...(rim ? [rectangle(box, "case")] : []), rectangle(box, `line ${kind}`));
    if (!followed) {
      draw(at.state === "here" && at.box ? at.box : object.box, at.state === "here" ? "found" : "lost");
      return boxes;
    }
    draw(object.box, "truth");
    if (at.before) draw(at.before, "before");
    if (at.box && stage !== "input") draw(at.box, "after");
    return boxes;
  }

  function renderFollowed() {
    const object = byId.get(state.object);
    parts.followed.hidden = !object;
    if (!object) { parts.followed.replaceChildren(element("h2", { id: "followed-title" }, "Nothing followed")); return; }
    const stop = element("button", { type: "button", class: "tool", "aria-label": `Stop following ${label(object)}` }, "✕");
    stop.addEventListener("click", () => follow(null));
    parts.followed.replaceChildren(
      element("div", { class: "row" },
        element("h2", { id: "followed-title" }, `${capital(noun)} ${object.id}: `, element("span", { class: "name", dir: "auto" }, object.name)),
        stop),
      badge(object),
      element("p", { class: "sentence" }, object.sentence),
      object.setting ? element("p", { class: "help" }, element("b", {}, "Most likely to help: "), object.setting) : "",
      closeUp(object),
      element("ol", { class: "way", "aria-label": `Its way through the stages` }, object.path.map((at) => wayItem(at))),
      evidence(object));
  }

  function wayItem(at) {
    const stage = stages.find((each) => each.stage === at.stage);
    const [mark, words] = STATES[at.state];
    const button = element("button", { type: "button", class: at.state },
      element("span", { class: "dot", "aria-hidden": "true" }, mark),
      element("b", {}, stage.title, element("span", { class: "unseen" }, `: ${words}. `)),
      element("span", { class: "facts" }, brief(at)));
    if (at.stage === state.stage) button.setAttribute("aria-current", "step");
    button.addEventListener("click", () => {
      open(at.stage);
      const again = parts.followed.querySelector(".way [aria-current]");
      if (again) again.focus({ preventScroll: true });
    });
    return element("li", {}, button);
  }

  function brief(at) {
    const facts = at.facts, said = [];
    if (at.state === "gone") return "";
    if (facts.class) said.push(facts.class);
    if ("width" in facts) said.push(`${value(facts.width)} × ${value(facts.height)} px`);
    if ("cells_across" in facts) said.push(`${value(facts.cells_across)} × ${value(facts.cells_down)} cells of ${facts.level}`);
    else if (facts.level) said.push(`on ${facts.level}`);
    if ("iou" in facts && at.stage !== "result") said.push(`IoU ${value(facts.iou)}`);
    for (const name of ["objectness", "score"]) if (name in facts) said.push(`${name} ${value(facts[name])}`);
    if ("rank" in facts) said.push(`rank ${number(facts.rank)} of ${number(facts.of)}`);
    if (facts.kept_by_nms === false) said.push("suppressed by NMS");
    if ("threshold" in facts) said.push(`${facts.grid}, cut at ${value(facts.threshold)}`);
    return said.join(" · ") || (at.state === "lost" ? "nothing left of it here" : "");
  }

  function closeUp(object) {
    const at = pathAt(object, state.stage) || {};
    const [x, y, width, height] = around([object.box, at.before, at.box].filter(Boolean));
    const group = shape("g", { class: "overlay" }, marks(object, state.stage, true));
    const picture = photograph(pictures.picture, trace.picture.width, trace.picture.height);
    if (300 / Math.max(width, height) > 3) picture.setAttribute("class", "pixels");
    return shape("svg", { class: "close", role: "img", "aria-label": `Close-up of ${label(object)} with its boxes at this stage`, viewBox: `${x} ${y} ${width} ${height}` }, picture, group);
  }

  function evidence(object) {
    const entries = Object.entries(object.evidence);
    if (!entries.length) return "";
    return element("details", {}, element("summary", {}, "Evidence"),
      element("dl", { class: "evidence" }, entries.map(([name, each]) => element("div", {}, element("dt", {}, words(name)), element("dd", {}, value(each))))));
  }

  function renderPanel() {
    const stage = stages.find((each) => each.stage === state.stage);
    const object = byId.get(state.object);
    parts.panel.setAttribute("aria-labelledby", `tab-${stage.stage}`);
    const figures = trace.figures.filter((figure) => figure.stage === stage.stage);
    parts.panel.replaceChildren(
      element("section", { class: "card", "aria-labelledby": "stage-title" },
        element("h2", { id: "stage-title" }, stage.title),
        element("p", { class: "caption" }, stage.text),
        stage.code ? element("p", { class: "soft" }, "In the code: maskrcnn/", stage.code) : "",
        stage.counts.length ? element("dl", { class: "counts" }, stage.counts.map((count) =>
          element("div", {}, element("dt", {}, count.label), element("dd", {}, value(count.value))))) : "",
        object ? here(object, stage) : "",
        mistakes()),
      ...figures.map(figureOf));
  }

  function mistakes() {
    if (!falsePositives().length) return "";
    const kinds = Object.entries(KINDS).map(([kind, words]) => [words, falsePositives().filter((each) => each.kind === kind).length]);
    return element("section", { class: "standing", "aria-label": "False positives" },
      element("h3", {}, plural(falsePositives().length, "false positive")),
      element("dl", {}, kinds.filter(([, count]) => count).map(([words, count]) => element("div", {}, element("dt", {}, words), element("dd", {}, number(count))))));
  }

  function here(object, stage) {
    const at = pathAt(object, stage.stage);
    if (!at) return "";
    const lines = { here: "is here", lost: "was lost here", gone: "was lost before this stage" };
    const facts = Object.entries(at.facts).filter(([name]) => name !== "of" && name !== "proposal");
    return element("section", { class: `standing ${at.state}`, "aria-label": `${label(object)} at this stage` },
      element("h3", {}, element("span", { class: "name", dir: "auto" }, capital(label(object))), ` ${lines[at.state]}`),
      at.state === "lost" ? element("p", {}, object.sentence) : "",
      facts.length ? element("dl", {}, facts.map(([name, each]) => element("div", {}, element("dt", {}, FACTS[name] || words(name)),
        element("dd", {}, name === "rank" ? `${number(each)} of ${number(at.facts.of)}` : value(each))))) : "");
  }

  function figureOf(figure) {
    const source = pictures[figure.name];
    const picture = element("img", { src: source, alt: figure.caption, width: figure.width, height: figure.height, loading: "lazy", decoding: "async" });
    picture.style.maxWidth = `${Math.max(figure.width, 480)}px`;
    const larger = element("button", { type: "button", class: "tool", "aria-label": `Enlarge: ${figure.title}` }, "Enlarge");
    const enlarge = () => {
      const close = element("button", { type: "button" }, "Close");
      close.addEventListener("click", () => parts.dialog.close());
      parts.dialog.replaceChildren(close, element("img", { src: source, alt: figure.caption }));
      parts.dialog.showModal();
    };
    picture.addEventListener("click", enlarge);
    larger.addEventListener("click", enlarge);
    return element("figure", { class: "card figure" },
      element("div", { class: "row" }, element("h3", {}, figure.title), larger),
      picture,
      element("figcaption", { class: "caption", "aria-hidden": "true" }, figure.caption),
      table(figure));
  }

  function renderList() {
    const all = filtered(), shown = all.slice(0, state.shown);
    const focused = parts.objects.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    const stop = shown.some((object) => object.id === state.object) ? state.object : (shown[0] || {}).id;
    parts.objects.replaceChildren(...shown.map((object) => {
      const button = element("button", { type: "button", "aria-pressed": String(object.id === state.object), tabindex: object.id === stop ? "0" : "-1" },
        element("span", { class: "number" }, String(object.id)),
        element("span", { class: "name", dir: "auto" }, object.name),
        trace.ground_truth ? element("span", { class: `what ${object.found ? "found" : "lost"}` }, gates.get(object.gate)) : "",
        object.score === null ? "" : element("span", { class: "soft" }, element("span", { class: "unseen" }, "score "), object.score.toFixed(3)));
      button.dataset.id = object.id;
      button.addEventListener("click", () => follow(object.id));
      return element("li", {}, button);
    }));
    parts.more.hidden = all.length <= shown.length;
    parts.more.textContent = `Show more (${number(all.length - shown.length)} left)`;
    const again = focused === null ? null : parts.objects.querySelector(`[data-id="${focused}"]`);
    if (again) again.focus({ preventScroll: true });
  }

  // ------------------------------------------------------------------ small words

  function label(object) { return `${noun} ${object.id} (${object.name})`; }
  function badge(object) { return element("span", { class: `badge ${object.found ? "found" : "lost"}` }, (object.found ? "✓ " : "✕ ") + gates.get(object.gate)); }
}

// -------------------------------------------------------------------- helpers that know no state

function element(tag, attributes, ...children) {
  return dressed(document.createElement(tag), attributes, children);
}

function shape(tag, attributes, ...children) {
  return dressed(document.createElementNS(SVG, tag), attributes, children);
}

function dressed(node, attributes, children) {
  for (const [name, each] of Object.entries(attributes)) node.setAttribute(name, each);
  node.append(...children.flat().filter((child) => child !== ""));
  return node;
}

function rectangle([x1, y1, x2, y2], kind) {
  return shape("rect", { class: kind, x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) });
}

function photograph(source, width, height) {
  return shape("image", { href: source, width, height, preserveAspectRatio: "none" });
}

function table(figure) {
  if (figure.numbers.length < 2) return "";
  const [names, ...rows] = figure.numbers;
  const made = element("table", {},
    element("caption", { class: "unseen" }, `Numbers of: ${figure.title}`),
    element("thead", {}, element("tr", {}, names.map((name) => element("th", { scope: "col" }, value(name))))),
    element("tbody", {}, rows.map((row) => element("tr", {}, row.map((each, i) => element(i ? "td" : "th", i ? {} : { scope: "row" }, value(each)))))));
  const frame = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${figure.title}` }, made);
  return rows.length <= 12 ? frame : element("details", {}, element("summary", {}, `All ${rows.length} numbers`), frame);
}

function withWeights(trace) {
  if (!trace.figures.some((figure) => figure.stage === "weights")) return trace.stages;
  const layers = trace.figures.filter((figure) => figure.stage === "weights");
  return [...trace.stages, { stage: "weights", title: "Weights", text: "What was learned: the weights of every layer.", code: "", counts: [{ key: "figures", label: "figures", value: layers.length }] }];
}

function pathAt(object, stage) { return object.path.find((each) => each.stage === stage); }

function around(boxes) {
  const x1 = Math.min(...boxes.map((box) => box[0])), y1 = Math.min(...boxes.map((box) => box[1]));
  const x2 = Math.max(...boxes.map((box) => box[2])), y2 = Math.max(...boxes.map((box) => box[3]));
  const room = 0.35 * Math.max(x2 - x1, y2 - y1, 12);
  return [x1 - room, y1 - room, x2 - x1 + 2 * room, y2 - y1 + 2 * room];
}

function moved(key, at, count, back, forth) {
  const to = { [back]: at - 1, [forth]: at + 1, Home: 0, End: count - 1 }[key];
  return to === undefined || !count ? null : (to + count) % count;
}

function size([x1, y1, x2, y2]) { return (x2 - x1) * (y2 - y1); }
function number(n) { return n.toLocaleString("en"); }
function plural(n, noun) { return `${number(n)} ${noun}${n === 1 ? "" : "s"}`; }
function capital(text) { return text[0].toUpperCase() + text.slice(1); }
function words(name) { return name.replaceAll("_", " "); }

function value(each) {
  if (each === null || each === undefined) return "–";
  if (Array.isArray(each)) return each.map((inner) => (Array.isArray(inner) ? inner.map(value).join(" ") : value(inner))).join(", ");
  if (typeof each === "object") return Object.entries(each).map(([name, inner]) => `${words(name)} ${value(inner)}`).join(", ");
  if (typeof each === "boolean") return each ? "yes" : "no";
  if (typeof each !== "number") return String(each);
  if (Number.isInteger(each)) return number(each);
  const digits = Math.abs(each) < 1 ? 3 : Math.abs(each) < 100 ? 2 : 1;
  return each !== 0 && Math.abs(each) < 0.001 ? each.toPrecision(2) : String(Number(each.toFixed(digits)));
}

if (document.getElementById("trace")) {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  mount(read("trace"), read("pictures"), document.getElementById("report"));
}
