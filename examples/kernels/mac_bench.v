// Drives mac.v through one case of a folder of `fqtsim golden make --format readmemh`: compares the register after every
// addition, prints the first wrong one, and writes all outputs to outputs.hex. Run it in the folder of the case.
`include "params.vh"

module bench;
    reg [`GOLDEN_A_BITS-1:0] a[0:`GOLDEN_A_WORDS-1];
    reg [`GOLDEN_B_BITS-1:0] b[0:`GOLDEN_B_WORDS-1];
    reg [`GOLDEN_ACC_BITS-1:0] c[0:`GOLDEN_C_WORDS-1];
    reg [`GOLDEN_ACC_BITS-1:0] level0[0:`GOLDEN_LEVEL0_WORDS-1];
    reg [`GOLDEN_ACC_BITS-1:0] outputs[0:`GOLDEN_EXPECTED_WORDS-1];

    reg clock = 0, load = 0;
    reg signed [`GOLDEN_A_BITS-1:0] left;
    reg signed [`GOLDEN_B_BITS-1:0] right;
    reg signed [`GOLDEN_ACC_BITS-1:0] start;
    wire signed [`GOLDEN_ACC_BITS-1:0] acc;
    integer row, col, k, wrong, step;

    mac #(`GOLDEN_A_BITS, `GOLDEN_B_BITS, `GOLDEN_ACC_BITS) unit (clock, load, left, right, start, acc);

    task tick;
        begin
            #1 clock = 1;
            #1 clock = 0;
        end
    endtask

    initial begin
        $readmemh("a.hex", a);
        $readmemh("b.hex", b);
        $readmemh("c.hex", c);
        $readmemh("level0.hex", level0);
        wrong = 0;
        for (row = 0; row < `GOLDEN_M; row = row + 1)
            for (col = 0; col < `GOLDEN_N; col = col + 1) begin
                start = c[row * `GOLDEN_N + col];
                load = 1;
                tick;
                load = 0;
                for (k = 0; k < `GOLDEN_K; k = k + 1) begin
                    left = a[row * `GOLDEN_K + k];
                    right = b[k * `GOLDEN_N + col];
                    tick;
                    step = (row * `GOLDEN_N + col) * `GOLDEN_K + k;
                    if (acc !== level0[step]) begin
                        if (wrong == 0)
                            $display("output [%0d, %0d], k = %0d: expected %h, observed %h", row, col, k, level0[step], acc);
                        wrong = wrong + 1;
                    end
                end
                outputs[row * `GOLDEN_N + col] = acc;
            end
        $writememh("outputs.hex", outputs);
        $display("%0d additions differ", wrong);
    end
endmodule
