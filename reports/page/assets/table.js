// The table of a board: sorted, searched and paged by DataTables; errors and ranks are drawn in the cells.

const filters = {};

/** True if the chosen filters leave a row of a board. */
function passes(board, row) {
  return (!filters.method || row.method === filters.method) && (!filters.arm || row.arm === filters.arm) &&
    (!filters.controls || !row.control) && passesBoard(board);
}

function passesBoard(board) {
  return (!filters.dataset || board.dataset === filters.dataset) && (!filters.base || board.model === filters.base);
}

/** The options of a filter: all values, with the first one standing for no filter. */
const allOr = (values) => [["", "all"], ...d3.sort(new Set(values)).map((value) => [value, value])];

function makeFilters(tables) {
  const rows = boards.flatMap((board) => board.rows);
  const set = (name) => (value) => {
    filters[name] = value;
    tables.forEach((table) => table.draw());
    boards.forEach((board, b) => {
      for (const part of [document.getElementById(`board-${b}`), document.querySelector(`#sections a[href="#board-${b}"]`)]) {
        if (part) part.hidden = !passesBoard(board);
      }
    });
  };
  document.getElementById("filters").append(
    choice("Method", allOr(rows.map((row) => row.method)), set("method")),
    choice("Arm", allOr(rows.map((row) => row.arm)), set("arm")),
    choice("Dataset", allOr(boards.map((board) => board.dataset)), set("dataset")),
    choice("Base", allOr(boards.map((board) => board.model)), set("base")),
    choice("Controls", [["", "shown below"], ["1", "hidden"]], set("controls")));
}

/** A cell with a number: its text and, if it has an error, the drawing on the scale of its column. */
function numberCell(row, i, scale) {
  const [number, half] = [row.numbers[i], row.halves[i]];
  return el("span", { class: "value" }, row.cells[i], number != null && half != null && interval(number, half, ...scale));
}

/** The ranks that a row can have, among `rivals`, as a text and a bar. */
function rankCell(ranks, rivals) {
  if (!ranks) return "";
  const [low, high] = ranks;
  const bar = el("span", { class: "ranks", "aria-hidden": true }, el("i"));
  bar.firstChild.style.left = `${(100 * (low - 1)) / rivals}%`;
  bar.firstChild.style.width = `${(100 * (high - low + 1)) / rivals}%`;
  return el("span", { class: "value" }, low === high ? String(low) : `${low}–${high}`, bar);
}

function labelCell(row, b, r) {
  return el("span", {}, rowLink(b, r),
    row.best && [" ", el("span", { class: "badge", title: "No method is significantly better." }, "among the best")]);
}

function makeTable(board, b) {
  const rivals = board.rows.filter((row) => row.ranks).length;
  const scales = board.columns.map((_, i) => {
    const ends = board.rows.filter((row) => row.halves[i] != null).flatMap((row) => [row.numbers[i] - row.halves[i], row.numbers[i] + row.halves[i]]);
    const means = board.rows.map((row) => row.numbers[i]).filter((value) => value != null);
    const room = d3.max(means) - d3.min(means); // one wide interval must not flatten the others
    return [Math.max(d3.min(ends), d3.min(means) - room / 4), Math.min(d3.max(ends), d3.max(means) + room / 4)];
  });
  const headings = ["control", "method", ...board.columns.map((column) => column.heading)];
  const table = el("table", { class: "board", "aria-label": `${board.experiment}: ${board.dataset} on ${board.model}` },
    el("thead", {}, el("tr", {}, headings.map((text, i) => el("th", { scope: "col", title: i > 1 && board.columns[i - 2].explanation }, text)))));
  const shown = (display, number) => (_, type, row) => (type === "display" ? display(row) : number(row) ?? "");
  const columns = [
    { visible: false, searchable: false, render: shown(() => "", (row) => +row.control) },
    { className: "label", type: "string", render: shown((row) => labelCell(row, b, row.place), (row) => row.label) },
    ...board.columns.map((column, i) => ({
      className: "number", type: "number", searchable: false, visible: !column.folded,
      render: shown(
        (row) => (column.heading === "rank" ? rankCell(row.ranks, rivals) : numberCell(row, i, scales[i])),
        (row) => row.numbers[i]),
    })),
  ];
  const holder = el("div", { class: "scroll" }, table);
  const made = new DataTable(table, {
    data: board.rows.map((row, place) => ({ ...row, place })),
    columns: columns.map((column) => ({ data: null, ...column })),
    order: [], orderFixed: { pre: [[0, "asc"]] }, autoWidth: false, orderMulti: true,
    pageLength: 50, lengthMenu: [25, 50, 100, { label: "all", value: -1 }],
    paging: board.rows.length > 50, info: board.rows.length > 50,
    layout: { topStart: "search", topEnd: null, bottomStart: board.rows.length > 50 ? ["info", "pageLength"] : null, bottomEnd: board.rows.length > 50 ? "paging" : null },
    language: { search: "Search methods", emptyTable: "no rows", zeroRecords: "No row has all of this." },
    createdRow: (node, row) => node.classList.add(...[row.control && "control", row.best && "best"].filter(Boolean)),
    drawCallback() { // controls stay apart, in every order, so the order that a reader chose is the second one
      const api = new DataTable.Api(table);
      const [chosen, direction] = api.order().find(([column]) => column > 0) ?? [];
      for (const heading of api.columns(":visible").header().toArray()) heading.removeAttribute("aria-sort");
      if (direction) api.column(chosen).header().setAttribute("aria-sort", `${direction}ending`);
      const first = table.tBodies[0].querySelector("tr.control");
      if (first) first.before(el("tr", { class: "divider" }, el("th", { colspan: table.tHead.rows[0].cells.length, scope: "rowgroup" }, "Controls")));
    },
  });
  made.search.fixed("filters", (_, row) => passes(board, row));
  return { table: made, holder };
}

/** Boxes that show and hide columns. */
function columnChoice(board, table) {
  return el("details", { class: "columns" }, el("summary", {}, "Columns"), el("div", {}, board.columns.map((column, i) => {
    const box = el("input", { type: "checkbox", checked: !column.folded, onchange: () => table.column(i + 2).visible(box.checked) && table.draw(false) });
    return el("label", { title: column.explanation }, box, ` ${column.heading}`);
  })));
}
