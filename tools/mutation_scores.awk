# Reads `mutmut results --all true`; prints a table of how many mutants of each file were noticed.
{
  name = $1
  sub(/\.x[^.]*$/, "", name)
  gsub(/\./, "/", name)
  count[name]++
  if ($NF == "killed" || $NF == "timeout") noticed[name]++
}
END {
  print "| file | mutants | noticed | share |"
  print "|---|---:|---:|---:|"
  for (name in count) {
    share = 100 * noticed[name] / count[name]
    lines[++n] = sprintf("| `%s.py` | %d | %d | %.1f %% |", name, count[name], noticed[name], share)
    all += count[name]
    all_noticed += noticed[name]
  }
  for (i = 2; i <= n; i++) {
    line = lines[i]
    for (j = i - 1; j > 0 && lines[j] > line; j--) lines[j + 1] = lines[j]
    lines[j + 1] = line
  }
  for (i = 1; i <= n; i++) print lines[i]
  printf "| all | %d | %d | %.1f %% |\n", all, all_noticed, 100 * all_noticed / all
}
