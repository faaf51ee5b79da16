// Several boards: win rates and rank inversions. Scores of different boards are never put in one order.

function boardName(board) {
  return `${board.experiment} (${board.dataset}, ${board.model})`;
}

function acrossSection() {
  const across = data("across");
  if (!across) return null;
  return el("section", { id: "across", "aria-label": "Across boards" },
    el("h2", {}, "Across boards"),
    el("p", { class: "note" }, "Scores of different boards cannot be compared, but ranks can. Win rate: the share of its rivals that a method beats on a board, ties as halves; the mean over the boards on which it competes."),
    grid("Win rates and ranks", ["method", "win rate", "significant", ...boards.map(boardName)],
      across.wins.map((win) => [win.label, win.rate.toFixed(2), win.significant.toFixed(2), ...win.ranks.map((rank) => (rank == null ? "" : String(rank)))])),
    across.pairs.map((pair) => {
      const [first, other] = pair.boards.map((b) => boardName(boards[b]));
      const pairs = (pair.methods * (pair.methods - 1)) / 2;
      const summary = `${first} and ${other}: ${pair.inversions.length} of ${pairs} pairs of methods in the opposite order`;
      return pair.inversions.length
        ? el("details", {}, el("summary", {}, summary), grid(summary, [`better on ${first}`, `better on ${other}`, "significant on both"], pair.inversions.map((one) => [one.better_on_first, one.better_on_other, one.significant ? "yes" : "no"])))
        : el("p", {}, `${summary}.`);
    }));
}
