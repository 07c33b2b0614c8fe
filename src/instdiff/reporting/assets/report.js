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
  const figure = (x) => (Number.isNaN(x) || x === null ? "–" : Math.abs(x) >= 1e4 ? Math.round(x).toLocaleString("en") : String(Number(x.toPrecision(4))));
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
    const strength = Math.min(1, Math.abs(value) / top) * 0.75;
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

  const state = { sort: null, down: true, page: 0, open: new Set(), size: 25 };
  const columns = [
    { name: "row", number: true, value: (i) => rows.row[i] },
    { name: "", value: (i) => rows.status[i], cell: (i) => make("span", "mark " + (rows.status[i] === "chosen" ? "chosen" : ""), rows.status[i]) },
    ...(texts.length ? [{ name: "text", value: (i) => texts[i][0], text: true }] : []),
    ...(rows.group && rows.group.length ? [{ name: rows.group_name, value: (i) => rows.group[i] }] : []),
    { name: "tokens", number: true, value: (i) => rows.n_tokens[i] ?? NaN, said: (v) => (Number.isNaN(v) ? "–" : v.toLocaleString("en")) },
    ...Object.keys(scores).map((name) => ({ name, number: true, value: (i) => scores[name][i], said: figure })),
  ];
  const matching = () => {
    const asked = $("search").value.trim().toLowerCase(), show = $("show").value, group = $("group").value;
    const found = [];
    for (let i = 0; i < some; i++) {
      if (show && rows.status[i] !== show && rows.kind[i] !== show) continue;
      if (group && rows.group[i] !== group) continue;
      if (asked && !(String(rows.row[i]) === asked || (texts[i] || []).some((t) => t.toLowerCase().includes(asked)))) continue;
      found.push(i);
    }
    if (state.sort !== null) {
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
    cell.append(make("p", "", `Row ${rows.row[i]}: ${rows.reason[i]}.`));
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
  const list = () => {
    const found = matching(), pages = Math.max(1, Math.ceil(found.length / state.size));
    state.page = Math.min(state.page, pages - 1);
    const lines = [];
    for (const i of found.slice(state.page * state.size, (state.page + 1) * state.size)) {
      const line = make("tr", state.open.has(i) ? "row open" : "row");
      line.tabIndex = 0;
      for (const one of columns) {
        const value = one.value(i);
        const cell = make("td", one.number ? "n" : one.text ? "text" : "", one.cell ? undefined : one.text ? value.slice(0, 160).replace(/\s+/g, " ") : one.said ? one.said(value) : String(value));
        if (one.cell) cell.append(one.cell(i));
        line.append(cell);
      }
      const toggle = () => { state.open.has(i) ? state.open.delete(i) : state.open.add(i); list(); };
      line.addEventListener("click", toggle);
      line.addEventListener("keydown", (event) => event.key === "Enter" && toggle());
      lines.push(line);
      if (state.open.has(i)) lines.push(opened(i));
    }
    $("rows").tBodies[0].replaceChildren(...lines);
    $("count").textContent = `${found.length.toLocaleString("en")} of ${some.toLocaleString("en")} rows`;
    $("page").textContent = `page ${state.page + 1} of ${pages}`;
    $("before").disabled = state.page === 0;
    $("after").disabled = state.page >= pages - 1;
    const heads = columns.map((column, n) => {
      const head = make("th", column.number ? "n" : "", (column.name || "status") + (state.sort === n ? (state.down ? " ↓" : " ↑") : ""));
      if (state.sort === n) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      head.addEventListener("click", () => {
        state.down = state.sort === n ? !state.down : Boolean(column.number);
        Object.assign(state, { sort: n, page: 0 });
        list();
      });
      return head;
    });
    const line = make("tr");
    line.append(...heads);
    $("rows").tHead.replaceChildren(line);
  };
  if (some) {
    const shows = [["", "all rows"], ["chosen", "chosen"], ["rejected", "rejected"], ["not eligible", "not eligible"], ["borderline", "around the cut"], ["extreme", "ends of a score"], ["random", "random"]];
    $("show").append(...shows.filter(([v]) => !v || rows.status.includes(v) || rows.kind.includes(v)).map(([v, t]) => new Option(t, v)));
    $("group").append(new Option(`any ${rows.group_name}`, ""), ...[...new Set(rows.group)].sort().map((v) => new Option(v, v)));
    $("group").hidden = !(rows.group && rows.group.length);
    const first = () => { state.page = 0; list(); };
    $("search").addEventListener("input", first);
    for (const id of ["show", "group"]) $(id).addEventListener("change", first);
    $("before").addEventListener("click", () => { state.page--; list(); });
    $("after").addEventListener("click", () => { state.page++; list(); });
    list();
  }

  // ── pictures ───────────────────────────────────────────────────────────────────────────────────────────────────
  performance.mark("rows");
  let graphics = false, ready = false;
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const spots = [];

  const themed = ({ data, layout }, printing) => {
    const shade = dark() && !printing;
    const font = { ...layout.font, color: shade ? "#a4b0c0" : "#566273" };
    const plain = data.filter((trace) => !printing || trace.visible !== "legendonly").map((trace) => {
      if (trace.type === "heatmap") return { ...trace, textfont: { ...trace.textfont, color: shade ? "#e3e8ef" : "#1b2430" } };
      if (trace.type !== "scattergl" || graphics) return trace;
      const step = Math.max(1, Math.ceil(trace.x.length / 2000)), thin = (v) => Array.from(v).filter((_, i) => i % step === 0);
      return { ...trace, type: "scatter", x: thin(trace.x), y: thin(trace.y), customdata: thin(trace.customdata) };
    });
    const modebar = { bgcolor: "rgba(0,0,0,0)", color: shade ? "#6b7788" : "#a3adba", activecolor: shade ? "#a4b0c0" : "#566273" };
    return { data: plain, layout: { ...layout, font, modebar, hoverlabel: { ...layout.hoverlabel, bgcolor: shade ? "#29313c" : "#ffffff", bordercolor: shade ? "#3b4655" : "#d3d8de", font: { ...layout.hoverlabel.font, color: shade ? "#e3e8ef" : "#1b2430" } } } };
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
  const draw = (spot, printing) => {
    const { data, layout } = themed(spot.spec(), printing);
    if (printing) layout.height = Math.min(layout.height, 880);
    if (printing) layout.width = spot.box.closest(".grid") ? 300 : 640; // paper is narrower than the window
    const options = { displaylogo: false, showSendToCloud: false, plotlyServerURL: "", responsive: true, displayModeBar: printing ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
    Plotly.newPlot(spot.box, data, layout, options);
    spot.drawn = true;
    spot.heavy = data.some((trace) => trace.type === "scattergl");
    spot.box.removeAllListeners?.("plotly_hover");
    spot.box.on("plotly_hover", (event) => {
      const { customdata } = event.points[0];
      if (spot.peek && customdata !== undefined && customdata !== null) peek(spot, Number(customdata));
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
  const points = ([, one]) => one.data.some((trace) => trace.customdata);
  const add = (card, figures) => {
    const box = card.firstElementChild;
    let now = 0;
    const spot = { box, drawn: false, spec: () => ({ data: resolved(figures[now][1].data), layout: figures[now][1].layout }) };
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
    for (const { target, isIntersecting } of seen) if (isIntersecting) {
      links.forEach((a, id) => a.classList.toggle("here", id === target.id));
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
