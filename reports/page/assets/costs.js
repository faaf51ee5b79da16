// Score against cost, with the Pareto front, and the ranking among the methods that a budget affords.

/** The rows that no other row beats: a better score needs a higher cost. */
function paretoFront(points, higher) {
  const front = [];
  for (const point of d3.sort(points, (p) => p.cost, (p) => (higher ? -p.score : p.score))) {
    const last = front.at(-1);
    if (!last || (higher ? point.score > last.score : point.score < last.score)) front.push(point);
  }
  return front;
}

function costPoints(board, name) {
  return board.rows.map((row, place) => ({ row, place, cost: row.costs[name], score: row.score?.[0], half: row.score?.[1], shown: row.score?.[2] }))
    .filter((point) => point.cost != null && point.score != null);
}

/** The ranking of the points within a budget, with the ranks that the board's tests of all pairs leave open. */
function ranked(board, points) {
  const places = new Set(points.map((point) => point.place));
  const better = d3.rollup(points.flatMap((point) => point.row.worse), (of) => of.length, (place) => place);
  return d3.sort(points, (p) => (board.higher ? -p.score : p.score)).map((point) => ({
    ...point,
    low: 1 + (better.get(point.place) ?? 0),
    high: points.length - point.row.worse.filter((place) => places.has(place)).length,
  }));
}

function costSection(board, b) {
  const names = [...new Set(board.rows.flatMap((row) => Object.keys(row.costs)))].filter((name) => new Set(costPoints(board, name).map((p) => p.cost)).size > 1);
  if (!names.length) return null;
  let name = names[0];
  const drawing = el("div", { class: "chart" });
  const ranking = el("div", { class: "ranking", "aria-live": "polite" });
  const output = el("output", {});
  const slider = el("input", { type: "range", min: 0, max: 1000, value: 1000, oninput: update });
  const section = el("section", { class: "costs", "aria-label": `Score by cost, ${board.experiment} on ${board.model}` },
    el("h3", {}, "Score by cost"),
    el("div", { class: "toolbar" },
      choice("Cost", names, (value) => { name = value; slider.value = 1000; update(); }),
      el("label", { class: "slider" }, el("span", {}, "Budget"), slider, output)),
    el("div", { class: "split" }, drawing, ranking));

  function update() {
    const linear = name.includes("share");
    const all = costPoints(board, name);
    const positive = d3.min(all.filter((p) => p.cost > 0), (p) => p.cost);
    const floor = linear ? 0 : positive / 3; // costs of 0 stand at the left edge
    const high = d3.max(all, (p) => p.cost);
    const share = slider.value / 1000;
    const budget = share === 1 ? high : linear ? share * high : floor * (high / floor) ** share;
    output.textContent = share === 1 ? "no limit" : `at most ${short(budget)}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    const points = all.map((point) => ({ ...point, x: Math.max(point.cost, floor), inside: point.cost <= budget }));
    const rivals = points.filter((point) => point.row.ranks);
    const affordable = rivals.filter((point) => point.inside);
    const front = paretoFront(points.filter((point) => point.row.front && point.inside), board.higher);
    const order = ranked(board, affordable);
    const decided = order.some((point) => point.low > 1); // else bold type would say nothing
    drawing.replaceChildren(draw(points, front, budget, share < 1, linear, [floor, high]), key(all.some((p) => p.cost === 0) && !linear));
    ranking.replaceChildren(grid(`Ranking ${share === 1 ? "at any cost" : "within the budget"}: ${order.length} of ${rivals.length} methods`,
      ["", "method", board.score, "ranks", name],
      order.slice(0, 20).map((point, i) => [String(i + 1), el("span", { class: decided && point.low === 1 && "best" }, rowLink(b, point.place)),
        point.shown, point.low === point.high ? String(point.low) : `${point.low}–${point.high}`, point.cost])),
      order.length > 20 ? el("p", { class: "note" }, `and ${order.length - 20} more`) : "");
  }

  function draw(points, front, budget, limited, linear, [floor, high]) {
    const colour = (point) => (!point.row.ranks || !point.inside ? "var(--faint)" : front.some((p) => p.place === point.place) ? "var(--warm)" : "var(--accent)");
    const middle = linear ? high / 2 : Math.sqrt(floor * high);
    const named = points.filter((point) => front.some((p) => p.place === point.place) || (point.row.control && point.row.arm === "stream"));
    return chart(`${board.score} against ${name}; the table beside it ranks the methods within the budget, at most 20; the table above has all rows`, {
      width: 680, height: 380, marginLeft: 48, marginRight: 20, marginBottom: 40,
      x: linear ? { label: name, domain: [0, Math.max(high, 0.01)] } : { type: "log", label: name, ticks: 6, tickFormat: short, domain: [floor, high * 1.6] },
      y: { label: board.score, grid: true, nice: true, reverse: !board.higher },
      marks: [
        limited && Plot.ruleX([Math.max(budget, floor)], { stroke: "currentColor", strokeDasharray: "4 3" }),
        Plot.line(front, { x: "x", y: "score", curve: "step-after", stroke: "var(--warm)" }),
        Plot.ruleX(points.filter((p) => p.half != null), { x: "x", y1: (p) => p.score - p.half, y2: (p) => p.score + p.half, stroke: colour }),
        Plot.dot(points, { x: "x", y: "score", r: 4, stroke: colour, fill: (p) => (p.row.ranks ? colour(p) : "var(--surface)") }),
        ...["start", "end"].map((anchor) => Plot.text(named.filter((p) => (p.x < middle) === (anchor === "start")), { x: "x", y: "score", text: (p) => chartName(p.row), textAnchor: anchor, dx: anchor === "start" ? 7 : -7, dy: -9, fill: "currentColor", stroke: "var(--surface)", strokeWidth: 3 })),
        Plot.tip(points, Plot.pointer({ x: "x", y: "score", title: (p) => `${p.row.label}\n${board.score} ${p.shown}\n${name} ${short(p.cost)}`, fill: "var(--surface)" })),
      ],
    });
  }

  const key = (zeros) => el("p", { class: "note" }, el("b", { class: "warm" }, "Orange"), ": Pareto front, the best score at each cost. Open circles: controls and incomplete rows. Grey: beyond the budget. ",
    "Bars: 95 % intervals. Ranks: by the tests of all pairs of the board.", zeros && " A cost of 0 stands at the left edge.");

  update();
  return section;
}
