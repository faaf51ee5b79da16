// What a row opens to.

function rowDetails(b, r) {
  const [board, details] = [boards[b], data(`row-${b}-${r}`)];
  const row = board.rows[r];
  const score = board.higher ? "f1" : "token_nll";
  return [row.label, [
    el("p", { class: "note" }, `${board.experiment}: ${board.dataset} on ${board.model}; arm ${row.arm}; protocol ${board.protocol}; boards with the key ${board.comparability.slice(0, 12)} can be compared.`),
    el("h3", {}, "Command"),
    details.commands.length ? details.commands.map((command) => el("pre", { tabindex: 0 }, command)) : el("p", {}, "The records hold no command."),
    el("h3", {}, "Runs"),
    runsChart(details.runs, score, board.score),
    grid("Scores at the last probe, and seconds by phase", ["record", "stream", "seed", "order", ...keys(details.runs, "scores"), ...keys(details.runs, "seconds").map((name) => `${name} s`)],
      details.runs.map((run) => [`${run.id}`, run.stream, String(run.seed), String(run.order), ...keys(details.runs, "scores").map((name) => run.scores[name] ?? ""), ...keys(details.runs, "seconds").map((name) => run.seconds[name] ?? "")])),
    details.tuning && [el("h3", {}, "Tuning"), tuningSection(details.tuning)],
    el("h3", {}, "Settings"),
    details.settings.length ? grid("Each setting and its source", ["setting", "value", "source"], details.settings.map(([name, value, source]) => [name, plain(value), source])) : el("p", {}, "The method has no settings."),
    el("h3", {}, "Scores"),
    grid("Means with the half-width of the 95 % interval and the standard error", ["score", "mean", "±", "SE", "error"], details.scores.map(([name, mean, half, se, kind]) => [name, mean, half ?? "", se ?? "", kind])),
    Object.keys(details.spread).length > 0 && grid("Shares in the variance of a run's score", ["source", "share"], Object.entries(details.spread)),
    el("h3", {}, "Costs"),
    grid("Costs", ["cost", "value"], details.prices),
    el("h3", {}, "Provenance"),
    grid("Code, packages and machine", ["fact", "value"], details.provenance),
    details.remarks.length > 0 && [el("h3", {}, "Remarks"), el("ul", {}, details.remarks.map((remark) => el("li", {}, remark)))],
  ]];
}

const keys = (runs, field) => [...new Set(runs.flatMap((run) => Object.keys(run[field])))];

function runsChart(runs, score, label) {
  const points = runs.filter((run) => run.scores[score] != null);
  if (points.length < 2) return null;
  const seeds = new Set(points.map((run) => run.seed));
  return chart(`${label} of each run; the table below has the numbers`, {
    width: 640, height: 60 + 20 * new Set(points.map((run) => run.stream)).size, marginLeft: 90,
    x: { label, nice: true, grid: true }, y: { label: null, type: "point" },
    symbol: { legend: seeds.size > 1 },
    marks: [
      Plot.ruleX([d3.mean(points, (run) => run.scores[score])], { stroke: "currentColor", strokeDasharray: "4 3" }),
      Plot.dot(points, { x: (run) => run.scores[score], y: "stream", symbol: seeds.size > 1 ? (run) => `seed ${run.seed}` : undefined, stroke: "var(--accent)", r: 4, tip: true }),
    ],
  });
}

/** The trials: for each numeric setting the scores by its values, and a table of all. */
function tuningSection(tuning) {
  const label = `validation ${tuning.metric === "f1" ? "F1" : "token NLL"}`;
  const scored = tuning.trials.map((trial, i) => ({ ...trial, i })).filter((trial) => trial.score != null);
  const panels = tuning.names.map((name, n) => {
    const values = scored.map((trial) => trial.values[n]);
    const numeric = values.every((value) => typeof value === "number");
    const log = numeric && d3.min(values) > 0 && d3.max(values) / d3.min(values) >= 20;
    if (new Set(values).size < 2) return null;
    return chart(`${label} by ${name}; the table below has the numbers`, {
      width: 300, height: 200, marginLeft: 44,
      x: numeric ? { type: log ? "log" : "linear", label: name, ticks: 4, tickFormat: log ? "~g" : undefined, nice: true } : { type: "point", label: name, tickFormat: plain },
      y: { label, nice: true, grid: true },
      marks: [
        tuning.floor != null && Plot.ruleY([tuning.floor], { stroke: "currentColor", strokeDasharray: "4 3" }),
        Plot.dot(scored, { x: (t) => t.values[n], y: "score", r: 3.5, stroke: "var(--accent)", fill: (t) => (t.whole ? "var(--accent)" : "var(--surface)"), tip: true, title: (t) => `trial ${t.i + 1}: ${t.score.toFixed(3)}\n${tuning.names.map((key, k) => `${key} ${plain(t.values[k])}`).join("\n")}` }),
        Plot.dot(scored.filter((t) => t.i === tuning.chosen), { x: (t) => t.values[n], y: "score", r: 7, stroke: "var(--warm)", strokeWidth: 2 }),
      ],
    });
  });
  return [
    el("div", { class: "panels" }, panels),
    el("p", { class: "note" }, "A dot is a trial. Orange ring: chosen. Open: stopped after the first part of the streams.", tuning.floor != null && " Dashed: without documents."),
    grid(`${tuning.trials.length} trials on the validation streams`, ["trial", ...tuning.names, label, "documents", "chosen"],
      tuning.trials.map((trial, i) => [String(i + 1), ...trial.values.map((value) => (typeof value === "number" ? value : plain(value))), trial.score ?? "no result", trial.documents, i === tuning.chosen ? "yes" : ""])),
  ];
}
