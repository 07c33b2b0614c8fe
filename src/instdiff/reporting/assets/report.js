"use strict";
(async () => {
  // Everything that data say is set as text, never as markup.
  const root = document.documentElement;
  const $ = (id) => document.getElementById(id);
  const make = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // ── what the page carries ──────────────────────────────────────────────────────────────────────────────────────
  const bytesOf = (letters) => {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(letters);
    const plain = atob(letters), bytes = new Uint8Array(plain.length);
    for (let i = 0; i < plain.length; i++) bytes[i] = plain.charCodeAt(i);
    return bytes;
  };
  const unpack = async (name) => {
    const place = $("payload-" + name);
    const bytes = bytesOf(place.textContent);
    place.remove();
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const words = (bytes) => new TextDecoder().decode(bytes);
  const [body, raw] = await Promise.all([unpack("figures").then((b) => JSON.parse(words(b))), unpack("arrays")]);
  performance.mark("unpacked");
  const known = new Map();
  const array = (ref) => {
    if (!known.has(ref.$)) {
      const [kind, start, count] = body.arrays[ref.$];
      const bytes = new Uint8Array(4 * count);
      for (let plane = 0; plane < 4; plane++) {
        const from = start + plane * count;
        for (let i = 0; i < count; i++) bytes[4 * i + plane] = raw[from + i];
      }
      const values = kind === "f" ? new Float32Array(bytes.buffer) : new Int32Array(bytes.buffer);
      if (kind === "i") for (let i = 1; i < count; i++) values[i] += values[i - 1]; // they are kept as steps
      known.set(ref.$, values);
    }
    return known.get(ref.$);
  };
  const resolved = (value) => {
    if (Array.isArray(value)) return value.map(resolved);
    if (value === null || typeof value !== "object") return value;
    if ("at" in value && "$" in value) {
      const column = array(value);
      return Float32Array.from(array({ $: value.at }), (row) => column[row]);
    }
    if ("$" in value) return array(value);
    return Object.fromEntries(Object.entries(value).map(([key, v]) => [key, resolved(v)]));
  };

  // ── rows ───────────────────────────────────────────────────────────────────────────────────────────────────────
  const rows = body.examples;
  const some = rows.row ? rows.row.length : 0;
  const scores = Object.fromEntries(Object.entries(rows.scores || {}).map(([name, ref]) => [name, array(ref)]));
  const details = Object.fromEntries(Object.entries(rows.details || {}).map(([name, ref]) => [name, array(ref)]));
  const texts = rows.texts || [];
  const figure = (x) => (Number.isNaN(x) || x === null ? "–" : Math.abs(x) >= 100 ? Math.round(x).toLocaleString("en") : String(Number(x.toPrecision(3))));
  const place = new Map(); // position in the table → number of the shown row
  if (some) array(rows.at).forEach((at, i) => place.set(at, i));
  const near = new Map();
  if (body.points.at) {
    const at = array(body.points.at), found = array(body.points.near);
    at.forEach((row, i) => near.set(row, found.subarray(3 * i, 3 * i + 3)));
  }

  const told = rows.tokens && rows.tokens.words ? rows.tokens : null;
  const heat = { names: [], at: new Map(), chosen: null, made: new Map() };
  if (told) {
    heat.names = [...Object.keys(told.columns), ...Object.keys(told.deltas)];
    heat.chosen = heat.names[0];
    let start = 0;
    for (const [row, count] of told.rows) {
      heat.at.set(row, [start, count]);
      start += count;
    }
  }
  const column = (name) => {
    if (!heat.made.has(name)) {
      const pair = told.deltas[name];
      const [a, b] = (pair || [name]).map((one) => array(told.columns[one]));
      const values = b ? a.map((v, i) => v - b[i]) : a;
      const sizes = values.filter((v) => !Number.isNaN(v)).map(Math.abs).sort();
      heat.made.set(name, { values, signed: Boolean(b), top: Math.max(sizes[Math.floor(0.97 * sizes.length)] || 1, 1e-6) });
    }
    return heat.made.get(name);
  };
  const unit = (name) => (name.endsWith(" informative") ? "" : " nats");
  const tint = (value, { signed, top }) => {
    if (Number.isNaN(value)) return "";
    const strength = Math.min(1, Math.abs(value) / top) * 0.6; // text on it keeps 4.5 to 1
    return signed && value < 0 ? `rgba(47,111,224,${strength})` : `rgba(224,112,48,${strength})`;
  };
  const coloured = (box, row, name) => {
    const [start, count] = heat.at.get(row);
    const ids = array(told.ids), shades = column(name), { values } = shades;
    box.replaceChildren();
    for (let i = start; i < start + count; i++) {
      const piece = make("span", "", told.words[ids[i]]);
      piece.style.background = tint(values[i], shades);
      piece.title = Number.isNaN(values[i]) ? "no value" : `${name}: ${values[i].toFixed(3)}${unit(name)}`;
      box.append(piece);
    }
  };

  const state = { sort: null, down: true, page: 0, open: new Set(), size: 25, within: new Map() };
  const columns = [
    { name: "row", number: true, value: (i) => rows.row[i], toggle: true },
    { name: "status", value: (i) => rows.status[i], cell: (i) => make("span", "mark " + (rows.status[i] === "chosen" ? "chosen" : ""), rows.status[i]) },
    ...(texts.length ? [{ name: "text", value: (i) => texts[i][0], text: true }] : []),
    ...(rows.group && rows.group.length ? [{ name: rows.group_name, value: (i) => rows.group[i] }] : []),
    { name: "tokens", number: true, value: (i) => rows.n_tokens[i] ?? NaN, said: (v) => (Number.isNaN(v) ? "–" : v.toLocaleString("en")) },
    ...Object.keys(scores).map((name) => ({ name, number: true, value: (i) => scores[name][i], said: figure })),
  ];
  const matching = () => {
    const asked = $("find").value.trim().toLowerCase(), show = $("show").value, group = $("group").value;
    const found = [];
    for (let i = 0; i < some; i++) {
      if (show && rows.status[i] !== show && rows.kind[i] !== show) continue;
      if (group && rows.group[i] !== group) continue;
      if (![...state.within].every(([n, [low, high]]) => columns[n].value(i) >= low && columns[n].value(i) <= high)) continue;
      if (asked && !(String(rows.row[i]) === asked || (texts[i] || []).some((t) => t.toLowerCase().includes(asked)))) continue;
      found.push(i);
    }
    if (state.sort === null) found.sort((a, b) => rows.order[a] - rows.order[b] || a - b);
    else {
      const { value, number } = columns[state.sort], sign = state.down ? -1 : 1;
      found.sort((a, b) => {
        const x = value(a), y = value(b);
        if (!number) return -sign * (x < y ? 1 : x > y ? -1 : 0) || a - b;
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
        return sign * (x - y) || a - b;
      });
    }
    return found;
  };
  const opened = (i) => {
    const line = make("tr"), cell = make("td", "whole");
    cell.colSpan = columns.length;
    const link = make("a", "", "Link to this row");
    link.href = `#examples?row=${rows.row[i]}`;
    const said = make("p", "", `Row ${rows.row[i]}, ${rows.reason[i]}. `);
    said.append(link);
    cell.append(said);
    const numbers = [...Object.entries(details)].map(([name, values]) => `${name} ${figure(values[i])}`).join("  ·  ");
    if (numbers) cell.append(make("p", "note", numbers));
    if (texts[i]) {
      cell.append(make("div", "label", "instruction"), make("div", "said", texts[i][0]));
      const label = make("div", "label", "response"), box = make("div", "said", texts[i][1]);
      cell.append(label, box);
      if (heat.at.has(i)) {
        const pick = make("select");
        pick.setAttribute("aria-label", "Colour of tokens");
        pick.append(new Option("plain text", ""), ...heat.names.map((name) => new Option(name, name)));
        const scale = make("span", "scale"), top = make("span");
        const paint = () => {
          heat.chosen = pick.value;
          scale.hidden = top.hidden = !pick.value;
          if (!pick.value) return void (box.textContent = texts[i][1]);
          coloured(box, i, pick.value);
          const shades = column(pick.value);
          const least = shades.signed ? `${tint(-shades.top, shades)}, ` : "";
          scale.style.background = `linear-gradient(90deg, ${least}transparent, ${tint(shades.top, shades)})`;
          top.textContent = `${shades.signed ? "−" + figure(shades.top) : "0"} to ${figure(shades.top)}${unit(pick.value)}`;
        };
        pick.value = heat.chosen;
        pick.addEventListener("change", paint);
        label.append(pick, scale, top);
        paint();
      }
    }
    line.append(cell);
    return line;
  };
  // Filter, order, page and open rows stand in the address, so that a view can be sent.
  const tell = () => {
    const told = new URLSearchParams();
    for (const [key, id] of [["show", "show"], ["group", "group"], ["q", "find"]]) if ($(id).value) told.set(key, $(id).value);
    if (state.sort !== null) told.set("sort", columns[state.sort].name);
    if (state.sort !== null && state.down) told.set("down", "1");
    for (const [n, ends] of state.within) told.set(`in ${columns[n].name}`, ends.map((end) => (Number.isFinite(end) ? end : "")).join(","));
    if (state.page) told.set("page", state.page + 1);
    if (state.open.size) told.set("row", [...state.open].map((i) => rows.row[i]).join(","));
    history.replaceState(null, "", `#examples?${told}`);
  };
  const go = () => {
    if (!location.hash.startsWith("#examples?")) return;
    const asked = new URLSearchParams(location.hash.slice(10));
    for (const [key, id] of [["show", "show"], ["group", "group"], ["q", "find"]]) $(id).value = asked.get(key) || "";
    const sort = columns.findIndex((one) => one.name === asked.get("sort"));
    const open = (asked.get("row") || "").split(",").filter(Boolean).map((row) => rows.row.indexOf(Number(row))).filter((i) => i >= 0);
    state.within = new Map(columns.flatMap(({ name, number }, n) => {
      const ends = number && (asked.get(`in ${name}`) || "").split(",");
      return ends && ends.length === 2 ? [[n, [ends[0] === "" ? -Infinity : Number(ends[0]), ends[1] === "" ? Infinity : Number(ends[1])]]] : [];
    }));
    Object.assign(state, { sort: sort < 0 ? null : sort, down: asked.get("down") === "1", open: new Set(open), page: Math.max(0, (Number(asked.get("page")) || 1) - 1) });
    if (open.length && !asked.has("page")) state.page = Math.max(0, Math.floor(matching().indexOf(open[0]) / state.size));
    list();
    (document.querySelector("#rows tr.open") || $("examples")).scrollIntoView({ behavior: "instant" });
  };
  const heading = (column, n) => {
    const head = make("th", column.number ? "n" : ""), sorted = state.sort === n;
    head.scope = "col";
    head.setAttribute("aria-sort", sorted ? (state.down ? "descending" : "ascending") : "none");
    const button = make("button", "", column.name + (sorted ? (state.down ? " ↓" : " ↑") : ""));
    button.type = "button";
    button.dataset.key = `head ${n}`;
    button.addEventListener("click", () => {
      state.down = sorted ? !state.down : Boolean(column.number);
      Object.assign(state, { sort: n, page: 0 });
      change();
    });
    head.append(button);
    return head;
  };
  // Each column of numbers has its histogram, and a part of it, drawn with the mouse or typed, is a filter.
  const BARS = 24, drawn = new Map();
  const histogram = (n) => {
    if (!drawn.has(n)) {
      const values = Array.from({ length: some }, (_, i) => columns[n].value(i)).filter((v) => !Number.isNaN(v)).sort((a, b) => a - b);
      const low = values[Math.floor(0.005 * values.length)], high = values[Math.ceil(0.995 * values.length) - 1];
      const step = (high - low) / BARS || 1, bars = new Array(BARS).fill(0);
      for (const v of values) bars[Math.min(BARS - 1, Math.max(0, Math.floor((v - low) / step)))]++;
      drawn.set(n, { low, step, bars, top: Math.max(1, ...bars), some: values.length });
    }
    return drawn.get(n);
  };
  const shape = (name, facts) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(facts)) made.setAttribute(key, value);
    return made;
  };
  const within = (n, low, high) => {
    if (low === -Infinity && high === Infinity) state.within.delete(n);
    else state.within.set(n, [low, high]);
    state.page = 0;
    change();
  };
  const brush = (column, n) => {
    const cell = make("td");
    if (!column.number || column.toggle || !histogram(n).some) return cell;
    const { low, step, bars, top } = histogram(n), ends = state.within.get(n) || [-Infinity, Infinity];
    const edge = (at) => (at <= 0 ? -Infinity : at >= BARS ? Infinity : low + step * at);
    const picture = shape("svg", { viewBox: `0 0 ${BARS} 10`, preserveAspectRatio: "none", "aria-hidden": "true" });
    bars.forEach((count, at) => {
      const inside = edge(at + 1) > ends[0] && edge(at) < ends[1];
      picture.append(shape("rect", { x: at, y: 10 - (10 * count) / top, width: 0.9, height: (10 * count) / top, class: inside ? "in" : "" }));
    });
    const at = (event) => Math.min(BARS - 1, Math.max(0, Math.floor((BARS * event.offsetX) / picture.clientWidth)));
    let from = null;
    picture.addEventListener("pointerdown", (event) => { from = at(event); picture.setPointerCapture(event.pointerId); });
    picture.addEventListener("pointermove", (event) => {
      if (from === null) return;
      const [a, b] = [from, at(event)].sort((x, y) => x - y);
      [...picture.children].forEach((bar, k) => bar.setAttribute("class", k >= a && k <= b ? "in" : ""));
    });
    picture.addEventListener("pointerup", (event) => {
      const [a, b] = [from, at(event)].sort((x, y) => x - y);
      from = null;
      a === b && state.within.has(n) ? within(n, -Infinity, Infinity) : within(n, edge(a), edge(b + 1));
    });
    cell.append(picture, ...["from", "to"].map((word, k) => {
      const box = make("input");
      Object.assign(box, { type: "number", step: "any", placeholder: word, value: Number.isFinite(ends[k]) ? Number(ends[k].toPrecision(4)) : "" });
      box.setAttribute("aria-label", `${column.name} ${word}`);
      box.dataset.key = `${word} ${n}`;
      box.addEventListener("change", () => {
        const now = [...ends];
        now[k] = box.value === "" ? (k ? Infinity : -Infinity) : Number(box.value);
        within(n, ...now);
      });
      return box;
    }));
    return cell;
  };
  const filled = (column, i) => {
    const value = column.value(i);
    const cell = make("td", column.number ? "n" : column.text ? "text" : "");
    if (column.toggle) {
      const button = make("button", "", String(value));
      button.type = "button";
      button.dataset.key = `row ${i}`;
      button.setAttribute("aria-expanded", String(state.open.has(i)));
      cell.append(button);
    } else if (column.cell) cell.append(column.cell(i));
    else cell.textContent = column.text ? value.slice(0, 160).replace(/\s+/g, " ") : column.said ? column.said(value) : String(value);
    return cell;
  };
  const list = () => {
    const held = document.activeElement && document.activeElement.dataset.key;
    const found = matching(), pages = Math.max(1, Math.ceil(found.length / state.size));
    state.page = Math.min(state.page, pages - 1);
    const lines = [];
    for (const i of found.slice(state.page * state.size, (state.page + 1) * state.size)) {
      const line = make("tr", state.open.has(i) ? "row open" : "row");
      line.append(...columns.map((one) => filled(one, i)));
      line.addEventListener("click", () => { state.open.has(i) ? state.open.delete(i) : state.open.add(i); change(); });
      lines.push(line);
      if (state.open.has(i)) lines.push(opened(i));
    }
    $("rows").tBodies[0].replaceChildren(...lines);
    $("count").textContent = `${found.length.toLocaleString("en")} of ${some.toLocaleString("en")} rows`;
    $("page").textContent = `page ${state.page + 1} of ${pages}`;
    $("before").disabled = state.page === 0;
    $("after").disabled = state.page >= pages - 1;
    const line = make("tr"), brushes = make("tr", "brush");
    line.append(...columns.map(heading));
    brushes.append(...columns.map(brush));
    $("rows").tHead.replaceChildren(line, brushes);
    if (held) document.querySelector(`[data-key="${held}"]`)?.focus({ preventScroll: true });
  };
  const change = () => { list(); tell(); };
  const save = (name, text) => {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const plain = (x) => (Number.isNaN(x) ? null : x);
  const record = (i) => ({
    row: rows.row[i], status: rows.status[i], reason: rows.reason[i], n_tokens: rows.n_tokens[i],
    ...(rows.group && rows.group.length ? { [rows.group_name]: rows.group[i] } : {}),
    scores: Object.fromEntries(Object.entries(scores).map(([name, values]) => [name, plain(values[i])])),
    ...(texts[i] ? { instruction: texts[i][0], response: texts[i][1] } : {}),
  });
  if (some) {
    const shows = [["", "all rows"], ["chosen", "chosen"], ["not chosen", "not chosen"], ["excluded", "excluded"], ["borderline", "around the cut"], ["extreme", "ends of a score"], ["random", "random"]];
    $("show").append(...shows.filter(([v]) => !v || rows.status.includes(v) || rows.kind.includes(v)).map(([v, t]) => new Option(t, v)));
    $("show").value = rows.status.includes("chosen") ? "chosen" : "";
    $("group").append(new Option(`any ${rows.group_name}`, ""), ...[...new Set(rows.group)].sort().map((v) => new Option(v, v)));
    $("group").hidden = !(rows.group && rows.group.length);
    const first = () => { state.page = 0; change(); };
    $("find").addEventListener("input", first);
    for (const id of ["show", "group"]) $(id).addEventListener("change", first);
    $("before").addEventListener("click", () => { state.page--; change(); });
    $("after").addEventListener("click", () => { state.page++; change(); });
    $("save").addEventListener("click", () => save("rows.jsonl", matching().map((i) => JSON.stringify(record(i)) + "\n").join("")));
    $("numbers").addEventListener("click", () => save("rows.txt", matching().map((i) => rows.row[i] + "\n").join("")));
    list();
    go();
    addEventListener("hashchange", go);
  }
  // ── another cut ────────────────────────────────────────────────────────────────────────────────────────────────
  if (body.cuts) {
    const { kinds, method, ...packed } = body.cuts;
    const best = Object.fromEntries(Object.entries(packed.best).map(([name, ref]) => [name, array(ref)]));
    const [numbers, tokens, chosen, labels] = ["rows", "n_tokens", "chosen", "labels"].map((name) => array(packed[name]));
    const clusters = body.points.clusters ? array(body.points.clusters) : [];
    const total = numbers.length, known = tokens.every((n) => n >= 0), mine = new Set(chosen);
    const count = (codes, taken) => {
      const out = new Map();
      for (const at of taken) if (codes[at] >= 0) out.set(codes[at], (out.get(codes[at]) || 0) + 1);
      return out;
    };
    const middle = (taken) => {
      const sizes = Float64Array.from(taken, (at) => tokens[at]).sort(), half = sizes.length >> 1;
      return sizes.length % 2 ? sizes[half] : (sizes[half - 1] + sizes[half]) / 2;
    };
    const sum = (taken) => taken.reduce((all, at) => all + tokens[at], 0);
    const whole = Int32Array.from(numbers, (_, at) => at);
    const [usual, places] = [labels, clusters].map((codes) => count(codes, whole));
    // Rows of the table: what, how it is counted, and what so many random rows have on average.
    const told = [
      ["rows", (taken) => taken.length, (n) => n],
      ["% of the rows", (taken) => (100 * taken.length) / total, (n) => (100 * n) / total],
      ...(known ? [["response tokens", sum, (n) => (n * sum(whole)) / total], ["median tokens", middle, () => middle(whole)]] : []),
      ...kinds.map((kind, code) => [`${rows.group_name}: ${kind}`, (taken) => count(labels, taken).get(code) || 0, (n) => (n * (usual.get(code) || 0)) / total]),
      ...(places.size ? [[`kinds of text, of ${places.size}`, (taken) => count(clusters, taken).size, (n) => [...places.values()].reduce((all, size) => all + 1 - (1 - size / total) ** n, 0)]] : []),
      ["shared with the selection", (taken) => taken.reduce((all, at) => all + mine.has(at), 0), (n) => (n * chosen.length) / total],
    ];
    const now = () => best[$("cut-method").value].subarray(0, Number($("cut-rows").value));
    const show = () => {
      const taken = now();
      $("cut-told").replaceChildren(...told.map(([name, of, random]) => {
        const line = make("tr"), head = make("th", "", name);
        head.scope = "row";
        line.append(head, ...[of(taken), of(chosen), random(taken.length)].map((x) => make("td", "n", figure(x))));
        return line;
      }));
    };
    const set = (value) => {
      const most = best[$("cut-method").value].length, n = Math.min(most, Math.max(1, Math.round(Number(value)) || 1));
      for (const id of ["cut-rows", "cut-slide"]) Object.assign($(id), { max: most, value: n });
      show();
    };
    $("cut-method").append(...Object.keys(best).map((name) => new Option(name, name)));
    if (best[method]) $("cut-method").value = method;
    $("cut-method").addEventListener("change", () => set($("cut-rows").value));
    $("cut-slide").addEventListener("input", () => set($("cut-slide").value));
    $("cut-rows").addEventListener("change", () => set($("cut-rows").value));
    $("cut-save").addEventListener("click", () => save(`${$("cut-method").value}.rows.txt`, Array.from(now(), (at) => numbers[at] + "\n").join("")));
    set(chosen.length);
  }
  const hints = new ResizeObserver((seen) => {
    for (const { target } of seen) target.classList.toggle("wide", target.scrollWidth > target.clientWidth + 1);
  });
  document.querySelectorAll(".scroll").forEach((box) => hints.observe(box));

  // ── pictures ───────────────────────────────────────────────────────────────────────────────────────────────────
  performance.mark("rows");
  let graphics = false, ready = false;
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const spots = [];

  const themed = ({ data, layout }, printing, width) => {
    const shade = dark() && !printing;
    const font = { ...layout.font, color: shade ? "#a4b0c0" : "#566273" };
    const plain = data.filter((trace) => !printing || trace.visible !== "legendonly").map((trace) => {
      if (trace.type === "heatmap") {
        const high = shade ? "#2457b3" : "#86aef2", low = shade ? "#9a4a26" : "#f0a27c", middle = trace.colorscale.at(-2)[1];
        const colorscale = trace.colorscale.length > 2 ? [[0, low], [0.5, middle], [1, high]] : [[0, middle], [1, high]];
        const narrow = (width - 170) / trace.x.length < 32; // numbers would lie on each other
        return { ...trace, colorscale, texttemplate: narrow ? "" : trace.texttemplate, showscale: narrow || trace.showscale, textfont: { ...trace.textfont, color: shade ? "#e3e8ef" : "#1b2430" } };
      }
      if (trace.type !== "scattergl" || graphics) return trace;
      const step = Math.max(1, Math.ceil(trace.x.length / 2000)), thin = (v) => Array.from(v).filter((_, i) => i % step === 0);
      return { ...trace, type: "scatter", x: thin(trace.x), y: thin(trace.y), customdata: thin(trace.customdata) };
    });
    const broken = (text) => { // in two lines where one is longer than a narrow picture
      const middle = text.indexOf(" ", text.length / 2);
      return width < 480 && text.length > 32 && middle > 0 ? `${text.slice(0, middle)}<br>${text.slice(middle + 1)}` : text;
    };
    const axis = (of) => of && { ...of, title: { ...of.title, text: broken((of.title && of.title.text) || "") } };
    const modebar = { bgcolor: "rgba(0,0,0,0)", color: shade ? "#93a0b1" : "#64707f", activecolor: shade ? "#e3e8ef" : "#1b2430" };
    return { data: plain, layout: { ...layout, xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis), font, modebar, hoverlabel: { ...layout.hoverlabel, bgcolor: shade ? "#29313c" : "#ffffff", bordercolor: shade ? "#3b4655" : "#d3d8de", font: { ...layout.hoverlabel.font, color: shade ? "#e3e8ef" : "#1b2430" } } } };
  };
  const short = (i) => `row ${rows.row[i]}, ${rows.status[i]}: ${(texts[i] ? texts[i][0] : "").slice(0, 150).replace(/\s+/g, " ")}`;
  const peek = (spot, at) => {
    spot.peek.replaceChildren();
    const i = place.get(at);
    const said = make("p");
    said.append(make("b", "", i === undefined ? "A row whose text is not here" : `Row ${rows.row[i]}, ${rows.status[i]}`));
    if (i !== undefined && texts[i]) said.append(` ${texts[i][0].slice(0, 260)}`);
    spot.peek.append(said);
    const others = Array.from(near.get(at) || []).filter((n) => n >= 0);
    if (others.length) spot.peek.append(...others.map((n) => make("p", "note", `most like it: ${short(n)}`)));
  };
  // One stop for each bar of tools; arrows go from tool to tool.
  const name_picture = (box, layout, label) => {
    const axes = [layout.xaxis, layout.yaxis].map((axis) => axis && axis.title && axis.title.text).filter(Boolean);
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", ["Picture", label, ...axes].filter(Boolean).join(", "));
    const bar = box.querySelector(".modebar"), tools = [...box.querySelectorAll(".modebar-btn")];
    if (!bar) return;
    bar.setAttribute("role", "toolbar");
    bar.setAttribute("aria-label", "Tools of the picture");
    tools.forEach((tool, n) => {
      tool.tabIndex = n ? -1 : 0;
      tool.setAttribute("aria-label", tool.dataset.title);
      if (tool.tagName !== "BUTTON") tool.setAttribute("role", "button");
      tool.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) tools[(n + step + tools.length) % tools.length].focus();
        else if (event.key === "Enter" || event.key === " ") { event.preventDefault(); tool.click(); }
      });
    });
  };
  // An entry of a legend hides and shows its traces by Enter or the space bar too; arrows go from entry to entry.
  const entries = (box) => [...box.querySelectorAll(".legend .traces")];
  const name_legend = (box, focused) => entries(box).forEach((entry, n) => {
    const { trace } = entry.__data__[0];
    const facts = { role: "button", tabindex: n === Math.max(0, focused) ? 0 : -1, "aria-label": `Show ${trace.name}`, "aria-pressed": trace.visible === true };
    for (const [key, value] of Object.entries(facts)) entry.setAttribute(key, value);
    if (n === focused) entry.focus({ preventScroll: true });
  });
  const press_legend = (event) => {
    const box = event.currentTarget, all = entries(box), n = all.findIndex((entry) => entry === event.target);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (n < 0 || !(step || event.key === "Enter" || event.key === " ")) return;
    event.preventDefault();
    if (step) return name_legend(box, (n + step + all.length) % all.length);
    const { trace } = all[n].__data__[0], whole = (one) => trace.legendgroup && one.legendgroup === trace.legendgroup;
    const at = box.data.flatMap((one, i) => (i === trace.index || whole(one) ? [i] : []));
    Plotly.restyle(box, { visible: trace.visible === true ? "legendonly" : true }, at).then(() => name_legend(box, n));
  };
  const draw = (spot, printing) => {
    const { data, layout } = themed(spot.spec(), printing, printing ? 640 : spot.box.clientWidth);
    if (printing) layout.height = Math.min(layout.height, 880);
    if (printing) layout.width = spot.box.closest(".grid") ? 300 : 640; // paper is narrower than the window
    const options = { displaylogo: false, showSendToCloud: false, plotlyServerURL: "", responsive: true, displayModeBar: printing ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
    Plotly.newPlot(spot.box, data, layout, options);
    name_picture(spot.box, layout, spot.label());
    name_legend(spot.box, -1);
    spot.box.addEventListener("keydown", press_legend);
    spot.box.removeAllListeners?.("plotly_afterplot");
    spot.box.on("plotly_afterplot", () => name_legend(spot.box, entries(spot.box).indexOf(document.activeElement)));
    spot.drawn = true;
    spot.heavy = data.some((trace) => trace.type === "scattergl");
    spot.box.removeAllListeners?.("plotly_hover");
    spot.box.on("plotly_hover", (event) => {
      const { customdata } = event.points[0];
      if (spot.peek && !spot.peek.hidden && customdata !== undefined && customdata !== null) peek(spot, Number(customdata));
    });
  };
  // A browser keeps few graphics contexts: pictures far from sight give theirs back.
  const watch = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) {
      const spot = spots.find((s) => s.box === target);
      if (isIntersecting && !spot.drawn) draw(spot);
      else if (!isIntersecting && spot.drawn && spot.heavy) {
        Plotly.purge(spot.box);
        spot.drawn = false;
      }
    }
  }, { rootMargin: "300px" });
  const points = ([, one]) => one.data.some((trace) => trace.customdata && trace.type !== "heatmap");
  const add = (card, figures) => {
    const box = card.firstElementChild;
    let now = 0;
    const spot = { box, drawn: false, spec: () => ({ data: resolved(figures[now][1].data), layout: figures[now][1].layout }), label: () => figures[now][0] };
    if (figures.length > 1) {
      const tabs = make("div", "tabs");
      const go = (n) => {
        now = n;
        tabs.querySelectorAll("button").forEach((b, i) => b.setAttribute("aria-pressed", String(i === n)));
        box.style.minHeight = figures[n][1].layout.height + "px";
        if (spot.peek) spot.peek.hidden = !points(figures[n]);
        if (!ready) return;
        Plotly.purge(box);
        draw(spot);
      };
      if (figures.length > 8) {
        const pick = make("select");
        pick.setAttribute("aria-label", "Which picture");
        pick.append(...figures.map(([label], n) => new Option(label, n)));
        pick.addEventListener("change", () => go(Number(pick.value)));
        tabs.append(pick);
      } else {
        figures.forEach(([label], n) => {
          const button = make("button", "", label);
          button.type = "button";
          button.setAttribute("aria-pressed", String(n === 0));
          button.addEventListener("click", () => go(n));
          tabs.append(button);
        });
      }
      card.prepend(tabs);
    }
    if (some && figures.some(points)) {
      spot.peek = make("div", "peek soft", "Point at a row to read it.");
      card.append(spot.peek);
    }
    spots.push(spot);
  };
  for (const parent of document.querySelectorAll(".figures")) {
    const figures = body.figures[parent.dataset.section], apart = parent.classList.contains("grid");
    [...parent.children].forEach((card, n) => add(card, apart ? [figures[n]] : figures));
  }

  // ── the page itself ────────────────────────────────────────────────────────────────────────────────────────────
  const redraw = (printing) => ready && spots.filter((spot) => spot.drawn || printing).forEach((spot) => draw(spot, printing));
  const name = () => ($("theme").textContent = dark() ? "Light" : "Dark");
  $("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    name();
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { name(); redraw(); });
  let kept;
  addEventListener("beforeprint", () => { kept = root.dataset.theme; root.dataset.theme = "light"; redraw(true); });
  addEventListener("afterprint", () => { kept === undefined ? delete root.dataset.theme : (root.dataset.theme = kept); redraw(); });
  name();
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.getAttribute("href").slice(1), a]));
  const reading = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) {
      const link = links.get(target.id);
      if (link) link.classList.toggle("here", isIntersecting);
    }
  }, { rootMargin: "-15% 0px -80% 0px" });
  document.querySelectorAll("main > section").forEach((section) => reading.observe(section));

  // The page can be read, and does all it does, before the library is unpacked, compiled and run. No frame comes in a
  // hidden tab.
  await new Promise((go) => {
    requestAnimationFrame(() => setTimeout(go));
    setTimeout(go, 200);
  });
  if (document.readyState === "loading") await new Promise((go) => addEventListener("DOMContentLoaded", go));
  const bytes = await unpack("plotly");
  await new Promise((go) => {
    // With an address of its own the library is compiled beside this thread.
    const script = document.createElement("script");
    const address = URL.createObjectURL(new Blob([bytes], { type: "text/javascript" }));
    const done = () => { URL.revokeObjectURL(address); go(); };
    const inline = () => {
      const other = document.createElement("script");
      other.textContent = words(bytes);
      document.head.append(other);
      done();
    };
    Object.assign(script, { src: address, integrity: root.dataset.library, crossOrigin: "anonymous", onload: done, onerror: inline });
    document.head.append(script);
  });
  performance.mark("library");
  ready = true;
  graphics = Boolean(document.createElement("canvas").getContext("webgl"));
  if (!graphics && spots.length) document.querySelector("header").append(make("p", "note", "This browser has no WebGL: pictures show some thousand points only."));
  spots.forEach((spot) => watch.observe(spot.box));
  root.dataset.ready = "yes";
})();
