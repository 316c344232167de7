// Click a heading: sort by it, largest first for numbers; click again: the other way round. Cells carry data-value.
document.querySelectorAll("table.sortable").forEach((table) => {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const body = table.tBodies[0];
      const rows = [...body.rows];
      const value = (row) => row.cells[column].dataset.value;
      const isNumeric = rows.every((row) => value(row) === "" || !Number.isNaN(Number(value(row))));
      const first = isNumeric ? "descending" : "ascending";
      const other = isNumeric ? "ascending" : "descending";
      const order = heading.getAttribute("aria-sort") === first ? other : first;
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (isNumeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true }));
      });
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      body.append(...rows);
    });
  });
});
