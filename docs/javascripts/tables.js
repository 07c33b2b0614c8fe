// The theme lays tables into boxes that scroll sideways: the arrow keys move those as well.
document$.subscribe(() => setTimeout(() => {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) {
    const heads = [...box.querySelectorAll("th")].map((head) => head.textContent.trim()).filter(Boolean);
    Object.assign(box, { tabIndex: 0, role: "region", ariaLabel: `Table: ${heads.join(", ")}` });
  }
}));
