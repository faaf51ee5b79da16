// The page: boards, theme, what an address opens, and printing.

const holder = document.getElementById("boards-shown");
const tables = boards.map((board, b) => {
  const { table, holder: scroll } = makeTable(board, b);
  holder.append(el("section", { id: `board-${b}`, class: "board-section", "aria-labelledby": `board-title-${b}` },
    el("h2", { id: `board-title-${b}` }, `${board.experiment}: ${board.dataset} on ${board.model}`),
    el("p", { class: "note" }, `${board.streams.length} streams, protocol ${board.protocol}, comparability key `, el("code", { title: board.comparability }, board.comparability.slice(0, 12))),
    columnChoice(board, table), scroll,
    el("p", { class: "caption" }, board.caption),
    board.remarks.length > 0 && el("details", { open: true }, el("summary", {}, "Remarks"), el("ul", {}, board.remarks.map((remark) => el("li", {}, remark)))),
    costSection(board, b), questionSection(board, b), traceSection(board, b)));
  return table;
});
const across = acrossSection();
if (across) holder.append(across);
makeFilters(tables);
if (boards.length > 1) {
  document.getElementById("sections").append(...boards.map((board, b) => el("a", { href: `#board-${b}` }, `${board.experiment}, ${board.model}`)), el("a", { href: "#across" }, "across boards"));
}

const theme = document.getElementById("theme");
function setTheme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  theme.textContent = dark ? "Light theme" : "Dark theme";
}
const preferred = matchMedia("(prefers-color-scheme: dark)");
preferred.addEventListener("change", () => setTheme(preferred.matches));
theme.addEventListener("click", () => setTheme(!document.documentElement.classList.contains("dark")));
setTheme(preferred.matches);

const dialog = document.getElementById("dialog");
const DETAILS = { row: rowDetails, question: questionDetails, document: documentDetails };
let shown = null; // the address that the reader closes with the dialog

/** Open what the address names (#row-0-3), or close the dialog. */
function route() {
  const [, kind, b, place] = location.hash.match(/^#(row|question|document)-(\d+)-(\d+)$/) ?? [];
  const known = kind && { row: boards[b]?.rows, question: data(`questions-${b}`), document: data(`documents-${b}`) }[kind]?.[place];
  if (!known) {
    shown = null;
    return dialog.close();
  }
  const [title, content] = DETAILS[kind](+b, +place);
  const heading = document.getElementById("dialog-title");
  heading.textContent = title;
  document.getElementById("dialog-content").replaceChildren(el("div", {}, content));
  shown = location.hash;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  heading.focus();
}
addEventListener("hashchange", route);
document.getElementById("close").addEventListener("click", () => dialog.close());
// The event comes a frame after the dialog closed: by then an address may have opened it again, or be about to.
dialog.addEventListener("close", () => !dialog.open && location.hash === shown && history.replaceState(null, "", "#"));
let pressed = null; // a click outside begins there, too: who selects a text may let go outside
dialog.addEventListener("pointerdown", (event) => { pressed = event.target; });
dialog.addEventListener("click", (event) => event.target === dialog && pressed === dialog && dialog.close());
route();

let lengths = [];
let dark = false;
addEventListener("beforeprint", () => {
  dark = document.documentElement.classList.contains("dark");
  document.documentElement.classList.remove("dark"); // paper is light
  lengths = tables.map((table) => table.page.len());
  tables.forEach((table) => table.page.len(-1).draw(false));
});
addEventListener("afterprint", () => {
  document.documentElement.classList.toggle("dark", dark);
  tables.forEach((table, b) => table.page.len(lengths[b]).draw(false));
});
