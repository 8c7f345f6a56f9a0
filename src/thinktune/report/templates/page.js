// Filters: a problem stays where every chosen outcome is the one it has, and the text is in it.
(() => {
  const form = document.querySelector("form.filters");
  if (!form) return;
  const problems = [...document.querySelectorAll("article.problem")];
  const shown = form.querySelector("output");
  const update = () => {
    const choices = [...form.querySelectorAll("select")].map(select => [Number(select.dataset.side), select.value]);
    const wanted = form.querySelector("input").value.toLowerCase();
    let count = 0;
    for (const problem of problems) {
      const outcomes = [...problem.querySelectorAll(".side")].map(side => side.dataset.outcome);
      const fits = choices.every(([side, value]) => !value || outcomes[side] === value);
      problem.hidden = !fits || (wanted !== "" && !problem.textContent.toLowerCase().includes(wanted));
      count += !problem.hidden;
    }
    shown.textContent = count + " of " + problems.length;
  };
  form.hidden = false;
  form.addEventListener("input", update);
  form.addEventListener("submit", event => event.preventDefault());
  form.querySelector("button").addEventListener("click", () => {
    const folds = [...document.querySelectorAll("article.problem details")];
    const open = folds.some(fold => !fold.open);
    for (const fold of folds) fold.open = open;
  });
  update();
})();
