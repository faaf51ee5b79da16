// The questions of a board, and the answers of every method to one of them.

function questionName(question) {
  return question.text ?? question.id;
}

/** The answers to a question: one line for each run, with a cell for each probe. */
function answersTo(b, place) {
  const board = boards[b];
  return data(`answers-${b}`).flatMap((runs, r) => runs.flatMap((run) => {
    if (run.stream !== data(`questions-${b}`)[place].stream) return [];
    const cells = run.probes.map((probe) => {
      const at = probe.question.indexOf(place);
      return at < 0 ? null : { probe: probe.probe, ...Object.fromEntries(Object.entries(probe).filter(([, of]) => Array.isArray(of)).map(([name, of]) => [name, of[at]])) };
    }).filter(Boolean);
    return cells.length ? [{ row: board.rows[r], r, run, cells }] : [];
  }));
}

function questionDetails(b, place) {
  const [board, question] = [boards[b], data(`questions-${b}`)[place]];
  const answers = answersTo(b, place);
  const probes = d3.sort(new Set(answers.flatMap((answer) => answer.cells.map((cell) => cell.probe))));
  const several = new Set(answers.map(({ run }) => `${run.seed} ${run.order}`)).size > 1;
  const documents = data(`documents-${b}`) ?? [];
  const at = documents.findIndex((one) => one.id === question.document && one.stream === question.stream);
  const given = answers.some(({ cells }) => cells.some((cell) => cell.retrieved != null || cell.cut || cell.unanswered));
  return [questionName(question), [
    grid("Question", ["fact", "value"], [
      ["question", question.text ?? "The records have its id only."], ["id", question.id],
      ["gold answer", question.gold.join(" | ") || "Published records have none."],
      question.earlier.length && ["true earlier", question.earlier.join(" | ")],
      ["stream", board.streams[question.stream]],
      ["document", at < 0 ? question.document : el("a", { href: `#document-${b}-${at}` }, question.document)],
      question.date && ["date", question.date],
    ].filter(Boolean)),
    at >= 0 && documents[at].text && el("blockquote", {}, documents[at].text),
    grid("Answers by the share of the stream that was observed", ["method", several && "run", given && "was given", ...probes.map((probe) => (probe === 0 ? "before the stream" : probe === 1 ? "at the end" : `after ${d3.format(".0%")(probe)}`))].filter((text) => text !== false),
      answers.map(({ row, r, run, cells }) => [
        rowLink(b, r), several && `seed ${run.seed}${run.order ? `, order ${run.order}` : ""}`, given && givenTo(cells.at(-1)),
        ...probes.map((probe) => answerCell(cells.find((cell) => cell.probe === probe))),
      ].filter((cell) => cell !== false))),
    el("p", { class: "note" }, "Behind an answer: its F1. Closed book has seen no document: it answers as the model did before the stream."),
  ]];
}

/** What a method was given with the question, as far as it is recorded. */
function givenTo(cell) {
  const facts = [
    cell.retrieved != null && (cell.retrieved ? `its document, at rank ${cell.retrieved}` : "other documents"),
    cell.cut && `${cell.cut} tokens did not fit`,
    cell.unanswered && `nothing: ${cell.unanswered}`,
  ].filter(Boolean);
  return facts.join("; ");
}

function answerCell(cell) {
  if (!cell) return "not asked";
  const kind = cell.stale ? "stale" : cell.f1 === 1 ? "right" : cell.f1 > 0 ? "partly" : "wrong";
  return el("span", { class: `answer ${kind}` }, cell.prediction || "(empty)", el("small", {}, ` ${cell.f1}${cell.stale ? " stale" : ""}`));
}

/** The searchable list of all questions, made when it is opened. */
function questionSection(board, b) {
  if (!document.getElementById(`questions-${b}`)) return null;
  const holder = el("div", {});
  return el("details", { class: "section", ontoggle: () => holder.firstChild || holder.append(...questionTable(board, b)) }, el("summary", {}, el("h3", {}, "Questions and answers")), holder);
}

function questionTable(board, b) {
  const questions = data(`questions-${b}`).map((question, place) => ({ ...question, place }));
  const predictions = new Map();
  const table = el("table", {}, el("thead", {}, el("tr", {}, ["question", "document", "stream", "gold answer", "mean F1", "answer"].map((text) => el("th", { scope: "col" }, text)))));
  const holder = el("div", { class: "scroll" }, table);
  const show = (r) => {
    predictions.clear();
    for (const run of data(`answers-${b}`)[r] ?? []) {
      const last = run.probes.at(-1);
      last?.question.forEach((place, i) => predictions.has(place) || predictions.set(place, { prediction: last.prediction[i], f1: last.f1[i], stale: last.stale?.[i] }));
    }
  };
  const first = Math.max(0, board.rows.findIndex((row) => row.ranks));
  show(first);
  const column = (display, value, more = {}) => ({ data: null, ...more, render: (_, type, question) => (type === "display" ? display(question) : value(question) ?? "") });
  const made = new DataTable(table, {
    data: questions,
    columns: [
      column((q) => el("a", { href: `#question-${b}-${q.place}` }, questionName(q)), questionName, { className: "label" }),
      column((q) => el("code", {}, q.document), (q) => q.document),
      column((q) => el("span", {}, board.streams[q.stream]), (q) => board.streams[q.stream]),
      column((q) => el("span", {}, q.gold.join(" | ")), (q) => q.gold.join(" ")),
      column((q) => (q.share == null ? "" : q.share.toFixed(2)), (q) => q.share, { className: "number", type: "number", searchable: false }),
      column((q) => (predictions.has(q.place) ? answerCell(predictions.get(q.place)) : "not asked"), (q) => predictions.get(q.place)?.prediction),
    ],
    order: [], autoWidth: false, pageLength: 25, lengthMenu: [25, 100, 500],
    layout: { topStart: "search", topEnd: null, bottomStart: ["info", "pageLength"], bottomEnd: "paging" },
    language: { search: "Search questions" },
  });
  const pick = choice("Answer of", board.rows.map((row, r) => [r, row.label]), (r) => { show(r); made.rows().invalidate().draw(false); });
  pick.querySelector("select").value = first;
  return [
    el("p", { class: "note" }, `${questions.length} questions. Mean F1: over the complete methods that are no controls, each as the mean of its runs, at the last probe. A question opens to the answers of all methods at all probes.`),
    el("div", { class: "toolbar" }, pick), holder,
  ];
}
