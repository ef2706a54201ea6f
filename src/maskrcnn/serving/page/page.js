// A picture goes up, its job is asked after until it is done, and the report comes into the frame.
// Whatever comes from outside (names, errors) is put in as text, never as HTML.
"use strict";

const ASK_EVERY = 400; // ms
const PATIENCE = 5; // questions without an answer, one after another, until the server is given up
const FIELDS = ["score_threshold", "nms_iou", "max_detections", "proposals", "size"];

const at = (id) => document.getElementById(id);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));

let about = null; // what the server offers
let picture = null; // File
let preview = null; // its object URL
let run = null; // the run on the page: {request, id}, and another object for each start

async function begin() {
  try {
    about = await (await fetch("/api/about")).json();
  } catch {
    return fail("the server does not answer");
  }
  for (const { name } of about.weights) at("weights").add(new Option(name, name));
  const megabytes = +(about.max_upload_bytes / 2 ** 20).toPrecision(3);
  at("accepted").textContent = `PNG, JPEG, TIFF, WebP and others, up to ${megabytes} MB`;
  showDefaults();
}

function showDefaults() {
  const chosen = about.weights.find(({ name }) => name === at("weights").value);
  for (const field of FIELDS) at(field).placeholder = chosen.defaults[field];
  const names = chosen.classes.slice(0, 12).join(", ");
  at("classes").textContent = `finds ${names}${chosen.classes.length > 12 ? ` and ${chosen.classes.length - 12} more` : ""}`;
}

function choose(files) {
  if (files.length === 0) return;
  if (files.length > 1) fail("one picture at a time, please: the first is taken");
  else fail("");
  picture = files[0];
  if (preview) URL.revokeObjectURL(preview);
  preview = URL.createObjectURL(picture);
  at("preview").hidden = false;
  at("preview").src = preview;
  at("name").textContent = picture.name;
  at("chosen").hidden = false;
  at("start").disabled = false;
  start(files.length > 1);
}

async function start(keepError = false) {
  if (!picture || !about) return;
  stop();
  if (!keepError) fail("");
  at("result").hidden = true;
  if (picture.size > about.max_upload_bytes) {
    return fail(`${picture.name} is too large: ${megabytes(picture.size)} MB; at most ${megabytes(about.max_upload_bytes)} MB`);
  }
  const mine = (run = { request: null, id: null });
  busy(true);
  show("sending the picture", 0);
  try {
    const job = await send(mine);
    mine.id = job.id;
    if (run !== mine) return forget(job.id); // stopped in the meantime
    await follow(mine);
  } catch (error) {
    if (run === mine) fail(error.message, error.field);
  } finally {
    if (run === mine) {
      run = null;
      busy(false);
    }
  }
}

function send(mine) {
  const query = new URLSearchParams({ weights: at("weights").value, name: picture.name });
  for (const field of FIELDS) {
    const value = at(field).value.trim();
    if (value) query.set(field, value);
  }
  return new Promise((done, refuse) => {
    const request = (mine.request = new XMLHttpRequest()); // unlike fetch it tells how far an upload has come
    request.open("POST", `/api/jobs?${query}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.responseType = "json";
    request.upload.onprogress = (event) => event.lengthComputable && run === mine && show("sending the picture", event.loaded / event.total / 6);
    request.onload = () => (request.status === 202 ? done(request.response) : refuse(answer(request.response)));
    request.onerror = () => refuse(new Error("the server does not answer, or refused the upload"));
    request.onabort = () => refuse(new Error("stopped"));
    request.send(picture);
  });
}

async function follow(mine) {
  for (let silent = 0; run === mine; await wait(ASK_EVERY)) {
    let response, job;
    try {
      response = await fetch(`/api/jobs/${mine.id}`);
      job = await response.json();
      silent = 0;
    } catch {
      if (++silent === PATIENCE) throw new Error("the server does not answer any more");
      continue;
    }
    if (run !== mine) return;
    if (!response.ok) throw answer(job);
    if (job.state === "failed") throw new Error(job.error);
    if (job.state === "done") return finish(job);
    if (job.state === "waiting") show(`waiting: ${count(job.ahead, "picture")} before this one`, null);
    else show(job.step, (1 + job.done) / (1 + job.total));
  }
}

function finish(job) {
  const home = `/api/jobs/${job.id}`;
  at("found").textContent = `${count(job.found, "object")} in ${job.name}`;
  at("png").href = `${home}/result.png`;
  at("coco").href = `${home}/coco.json`;
  at("polygons").href = `${home}/polygons.json`;
  at("alone").href = at("report").src = `${home}/report`;
  at("result").hidden = false;
  at("status").textContent = `done in ${job.seconds.toFixed(1)} s: ${count(job.found, "object")}`;
  at("result").scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

function stop() {
  if (!run) return;
  const { request, id } = run;
  run = null;
  if (id) forget(id);
  else request?.abort();
  busy(false);
  at("status").textContent = "stopped";
}

function forget(id) {
  fetch(`/api/jobs/${id}`, { method: "DELETE", keepalive: true }).catch(() => {});
}

function busy(is) {
  at("cancel").hidden = at("progress").hidden = !is;
  at("start").textContent = is ? "Start again" : "Find objects";
  if (!is) at("bar").value = 0;
}

function show(text, share) {
  if (at("status").textContent !== text) at("status").textContent = text; // read aloud once
  if (share === null) at("bar").removeAttribute("value");
  else at("bar").value = share;
}

function fail(line, field) {
  for (const name of ["weights", ...FIELDS]) at(name).removeAttribute("aria-invalid");
  at("error").textContent = line;
  if (!line) return;
  at("status").textContent = "";
  const input = field && at(field);
  if (!input) return;
  at("thresholds").open = at("thresholds").open || FIELDS.includes(field);
  input.setAttribute("aria-invalid", "true");
  input.focus();
}

function answer(body) {
  const error = new Error(body?.error ?? "the server refused the picture");
  error.field = body?.field;
  return error;
}

const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(1);

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
at("form").addEventListener("reset", (event) => {
  event.preventDefault(); // the picture and the detector stay
  for (const field of FIELDS) at(field).value = "";
  fail("");
});
at("file").addEventListener("change", () => {
  choose([...at("file").files]);
  at("file").value = ""; // so that the same file can be chosen again
});
at("weights").addEventListener("change", showDefaults);
at("cancel").addEventListener("click", () => {
  stop();
  at("start").focus();
});
at("preview").addEventListener("error", () => (at("preview").hidden = true)); // a kind that browsers do not show
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const files = [...(event.dataTransfer?.files ?? [])];
  if (files.length) choose(files);
  else fail("what was dropped is no file; expected a picture");
});
addEventListener("pagehide", () => run?.id && forget(run.id));
begin();
