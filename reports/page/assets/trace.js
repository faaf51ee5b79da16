// Documents: their text, the weights of their tokens, and the loss of every method when they arrived.

function weighted(b, key) {
  return Object.entries(data(`tokens-${b}`) ?? {}).filter(([, documents]) => documents[key]).map(([r, documents]) => [+r, documents[key]]);
}

function documentDetails(b, place) {
  const [board, one] = [boards[b], data(`documents-${b}`)[place]];
  const tokens = weighted(b, `${one.stream} ${one.id}`);
  const holder = el("div", {});
  const show = (i) => holder.replaceChildren(...tokenView(...tokens[i]));
  const losses = d3.sort(Object.entries(one.nll), ([, nll]) => nll);
  const floor = one.nll[board.floor];
  const questions = (data(`questions-${b}`) ?? []).map((question, q) => [question, q]).filter(([question]) => question.document === one.id && question.stream === one.stream);
  if (tokens.length) show(0);
  return [`Document ${one.id}`, [
    el("p", { class: "note" }, `${board.streams[one.stream]}${one.date && `, ${one.date}`}`),
    one.text ? el("blockquote", {}, one.text) : !tokens.some(([, of]) => of.pieces.length) && el("p", {}, "The records have no text of this document."),
    tokens.length > 0 && [el("h3", {}, "Token weights"), el("div", { class: "toolbar" }, choice("Method", tokens.map(([r], i) => [i, board.rows[r].label]), show)), holder],
    losses.length > 0 && [el("h3", {}, "Loss on arrival"), grid("NLL per token (nats) of the document, before any update on it", ["method", "NLL", "less than unadapted"],
      losses.map(([r, nll]) => [rowLink(b, r), nll, floor == null ? "" : floor - nll]))],
    questions.length > 0 && [el("h3", {}, "Questions on it"), el("ul", {}, questions.map(([question, q]) => el("li", {}, el("a", { href: `#question-${b}-${q}` }, questionName(question)), question.gold.length > 0 && ` ${question.gold.join(" | ")}`)))],
  ]];
}

/** The tokens of a document, each shaded by its weight, above a chart of the weights. */
function tokenView(r, tokens) {
  const highest = d3.max(tokens.weights) || 1;
  const text = (i) => tokens.pieces[i] ?? "";
  const about = (i) => `${text(i)}\nweight ${short(tokens.weights[i])}${tokens.nll ? `\nNLL ${short(tokens.nll[i])} nats, before any update on it` : ""}\n${tokens.classes[i]}${tokens.pos ? `, ${tokens.pos[i]}` : ""}`;
  const token = (_, i) => {
    const span = el("span", { class: tokens.classes[i], title: about(i) }, text(i));
    span.style.setProperty("--share", `${Math.round((70 * Math.max(0, tokens.weights[i])) / highest)}%`);
    return span;
  };
  const points = tokens.weights.map((weight, i) => ({ i, weight, nll: tokens.nll?.[i], kind: tokens.classes[i] }));
  const bars = (value, label) => chart(`${label} of each token, in order`, {
    width: 700, height: 150, marginLeft: 48, x: { label: "token" }, y: { label, grid: true },
    color: { domain: ["fact", "name", "filler"], range: ["var(--warm)", "var(--accent)", "var(--faint)"], legend: true },
    marks: [Plot.rectY(points, { x1: (p) => p.i, x2: (p) => p.i + 1, y: value, fill: "kind", insetLeft: 0.5, insetRight: 0.5, title: (p) => about(p.i), tip: true })],
  });
  return [
    tokens.pieces.length ? el("p", { class: "tokens" }, tokens.weights.map(token)) : el("p", {}, "This record has no text: the bars are in the order of the tokens."),
    el("p", { class: "note" }, "Shade: weight of the token. Underlined: states the answer to a question; dotted: names the subject."),
    bars("weight", "weight"), tokens.nll && bars("nll", "NLL before the update"),
  ].filter(Boolean);
}

function traceSection(board, b) {
  if (!document.getElementById(`documents-${b}`)) return null;
  const holder = el("div", {});
  const open = () => {
    if (holder.firstChild) return;
    const documents = data(`documents-${b}`);
    const options = documents.map((one, place) => [place, one, weighted(b, `${one.stream} ${one.id}`).length]);
    const shown = d3.sort(options, ([, , count]) => -count); // those with token weights first
    const pick = choice("Document", shown.map(([place, one, count]) => [place, `${board.streams[one.stream]}: ${one.text ? `${one.text.slice(0, 60)}…` : one.id}${count ? " (token weights)" : ""}`]), () => {});
    holder.append(el("p", { class: "note" }, "A document opens to its text, the weights with which each method learned from its tokens, and its NLL under each method when it arrived."),
      el("div", { class: "toolbar" }, pick, el("button", { onclick: () => { location.hash = `document-${b}-${pick.querySelector("select").value}`; } }, "Open")));
  };
  return el("details", { class: "section", ontoggle: open }, el("summary", {}, el("h3", {}, "Documents and token weights")), holder);
}
